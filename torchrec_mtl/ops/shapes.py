"""Checks of the tensors of an operation, before a kernel reads beyond them or broadcasts them."""

from torch import Tensor

from torchrec_mtl.errors import InputError


def sizes(name: str, x: object, num_dimensions: int) -> tuple[int, ...]:
    """Returns the sizes of a tensor.

    Raises:
        InputError: if ``x`` is no tensor, or has another number of dimensions.

    Example::

        >>> import torch
        >>> sizes("inputs", torch.zeros(5, 7, 4), 3)
        (5, 7, 4)
    """
    if not isinstance(x, Tensor):
        raise InputError(f"`{name}` (a {type(x).__name__}) must be a tensor")
    if x.ndim != num_dimensions:
        raise InputError(f"`{name}` (of shape {list(x.shape)}) must have {num_dimensions} dimensions")
    return tuple(x.shape)


def check_shape(name: str, x: object, *expected: int) -> None:
    """Raises `InputError` unless ``x`` is a tensor of the ``expected`` sizes.

    Example::

        >>> import torch
        >>> check_shape("key_weight", torch.zeros(1, 4), 4, 4)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `key_weight` (of shape [1, 4]) must be of shape [4, 4]
    """
    if sizes(name, x, len(expected)) != expected:
        raise InputError(f"`{name}` (of shape {list(x.shape)}) must be of shape {list(expected)}")  # type: ignore[attr-defined]


def check_heads(num_heads: object, dim: int | None = None) -> None:
    """Raises `InputError` unless ``num_heads`` is an integer of at least 1 and divides ``dim``, if that is given.

    Example::

        >>> check_heads(3, 8)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `num_heads` (=3) must divide the embedding dimension (=8)
    """
    if type(num_heads) is not int or not 1 <= num_heads < 2**31:
        raise InputError(f"`num_heads` (={num_heads!r:.60}) must be an integer of at least 1")
    if dim is not None and dim % num_heads:
        raise InputError(f"`num_heads` (={num_heads}) must divide the embedding dimension (={dim})")
