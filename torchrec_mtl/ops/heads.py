"""Splitting the embedding dimension into attention heads, and merging them again."""

from torch import Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``[..., N, D]`` to ``[..., m, N, d_h]``: head ``j`` takes columns ``j * d_h`` to ``(j + 1) * d_h``."""
    return x.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """The inverse of `split_heads`: ``[..., m, N, d_h]`` to ``[..., N, D]``."""
    return x.transpose(-3, -2).flatten(-2)
