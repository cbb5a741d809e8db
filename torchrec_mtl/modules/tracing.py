"""What a module does so that FX can trace it: a traced tensor has no length and cannot be iterated."""

from torch import Tensor


def unbind(x: Tensor, size: int, dim: int = 1) -> list[Tensor]:
    """Returns ``list(x.unbind(dim))``, where ``size`` is the size of that dimension.

    Example::

        >>> import torch
        >>> [part.tolist() for part in unbind(torch.tensor([[1, 2], [3, 4]]), size=2)]
        [[1, 3], [2, 4]]
    """
    parts = x.unbind(dim)
    return [parts[place] for place in range(size)]
