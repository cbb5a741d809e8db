"""The definition of attention, BPCM eq. (2)-(3), in PyTorch's matrix products. The kernel is tested against it.

`attention` is also what TorchScript compiles, so it is written in what TorchScript knows.
"""

import torch
from torch import Tensor


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``[..., N, D]`` to ``[..., m, N, d_h]``: head ``j`` takes columns ``j * d_h`` to ``(j + 1) * d_h``."""
    return x.unflatten(-1, [num_heads, -1]).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """The inverse of `split_heads`: ``[..., m, N, d_h]`` to ``[..., N, D]``."""
    return x.transpose(-3, -2).flatten(-2)


def projected_attention(queries: Tensor, keys: Tensor, values: Tensor, num_heads: int) -> Tensor:
    """BPCM eq. (2)-(3) from ``Q [B, N, D]``, ``K [B, M, D]`` and ``V [B, M, D]``, however they were projected."""
    queries, keys, values = (split_heads(x, num_heads) for x in (queries, keys, values))
    scores = queries @ keys.transpose(-2, -1) / queries.shape[-1] ** 0.5
    return merge_heads(scores.softmax(-1) @ values)


def attention(
    queries: Tensor, inputs: Tensor, query_weight: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int
) -> Tensor:
    """BPCM eq. (2)-(3); arguments as in `torchrec_mtl.ops.attention`.

    ``Q_j K_j^T = X (Wq_j^T Wk_j) Y^T``: one product of the two weights a step replaces the projection of the inputs to
    keys.
    """
    heads = [num_heads, -1]
    query_heads, key_heads = query_weight.unflatten(0, heads), key_weight.unflatten(0, heads)
    folded = torch.einsum("jhd,jhe->dje", [query_heads, key_heads]) / query_heads.shape[1] ** 0.5
    folded_queries = (queries @ folded.flatten(1)).unflatten(-1, heads).transpose(1, 2)  # [B, m, N, D]
    scores = folded_queries.flatten(1, 2) @ inputs.transpose(1, 2)  # [B, m N, M]
    weights = scores.softmax(-1).unflatten(1, heads)
    return merge_heads(weights @ split_heads(inputs @ value_weight.T, num_heads))  # BPCM eq. (3)
