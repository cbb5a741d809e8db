"""Multi-head attention of one set of rows to another, with its projections."""

import torch
from torch import Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``[..., N, D]`` to ``[..., m, N, d_h]``: head ``j`` takes columns ``j * d_h`` to ``(j + 1) * d_h``."""
    return x.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """The inverse of `split_heads`: ``[..., m, N, d_h]`` to ``[..., N, D]``."""
    return x.transpose(-3, -2).flatten(-2)


def attention(
    queries: Tensor,
    inputs: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    num_heads: int = 1,
) -> Tensor:
    """``concat_j softmax(Q_j K_j^T / sqrt(d_h)) V_j``, BPCM eq. (2)-(3), for each of ``m`` heads.

    ``Q_j K_j^T = X (Wq_j Wk_j^T) Y^T``: the product of the two weights, once per step, replaces a projection.

    Args:
        queries: ``X [B, N, D]``.
        inputs: ``Y [B, M, D]``; the queries themselves for self-attention.
        query_weight: ``[D, D]``, rows are outputs as in `torch.nn.Linear`; head ``j`` owns rows
            ``j * d_h`` to ``(j + 1) * d_h``.
        key_weight: ``[D, D]``, likewise.
        value_weight: ``[D, D]``, likewise.
        num_heads: ``m``; must divide ``D``, ``d_h = D / m``.

    Returns:
        ``[B, N, D]``, the heads side by side.

    Example::

        >>> eye, zero = torch.eye(2), torch.zeros(2, 2)
        >>> attention(torch.zeros(1, 1, 2), torch.arange(8.0).view(1, 4, 2), zero, zero, eye)
        tensor([[[3., 4.]]])
    """
    heads = (num_heads, -1)
    query_heads, key_heads = query_weight.unflatten(0, heads), key_weight.unflatten(0, heads)
    folded = torch.einsum("jhd,jhe->dje", query_heads, key_heads) / query_heads.shape[1] ** 0.5
    folded_queries = (queries @ folded.flatten(1)).unflatten(-1, heads).transpose(1, 2)  # [B, m, N, D]
    scores = folded_queries.flatten(1, 2) @ inputs.transpose(1, 2)  # [B, m N, M]
    weights = scores.softmax(-1).unflatten(1, heads)
    return merge_heads(weights @ split_heads(inputs @ value_weight.T, num_heads))
