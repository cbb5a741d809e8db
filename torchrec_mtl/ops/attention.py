"""Multi-head attention of projected queries, keys and values."""

import torch.nn.functional as F
from torch import Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``[..., N, D]`` to ``[..., m, N, d_h]``: head ``j`` takes columns ``j * d_h`` to ``(j + 1) * d_h``."""
    return x.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """The inverse of `split_heads`: ``[..., m, N, d_h]`` to ``[..., N, D]``."""
    return x.transpose(-3, -2).flatten(-2)


def attention(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int = 1) -> Tensor:
    """``concat_j softmax(Q_j K_j^T / sqrt(d_h)) V_j``: BPCM eq. (3), for each of ``m`` heads.

    Args:
        queries: ``[B, N, D]``, projected.
        keys: ``[B, M, D]``, projected.
        values: ``[B, M, D]``, projected.
        num_heads: ``m``; must divide ``D``, ``d_h = D / m``.

    Returns:
        ``[B, N, D]``, the heads side by side.

    Example::

        >>> import torch
        >>> attention(torch.zeros(1, 1, 2), torch.ones(1, 4, 2), torch.arange(8.0).view(1, 4, 2))
        tensor([[[3., 4.]]])
    """
    heads = (split_heads(x, num_heads) for x in (queries, keys, values))
    return merge_heads(F.scaled_dot_product_attention(*heads))
