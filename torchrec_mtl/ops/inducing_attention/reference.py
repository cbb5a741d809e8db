"""The definition: TAFE eq. (17)-(19) and (21) as they stand. Every other backend is held to this one."""

import torch
from torch import Tensor

from torchrec_mtl.ops.attention import merge_heads, split_heads


def _attend(queries: Tensor, inputs: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, num_heads: int) -> Tensor:
    """Eq. (18)-(19): ``queries [B, K, D]``, ``inputs [B, F, D]`` to ``[B, K, D]``."""
    query = split_heads(queries, num_heads)
    key = split_heads(inputs @ wk.T, num_heads)
    value = split_heads(inputs @ wv.T, num_heads)
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    return merge_heads(scores.softmax(-1) @ value) @ wo.T


def inducing_attention(
    points: Tensor, selection: Tensor, inputs: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, num_heads: int
) -> Tensor:
    """Eq. (17)-(19); shapes as in the front door."""
    queries = (points * selection.unsqueeze(-1)).to(inputs.dtype)
    return _attend(queries, inputs, wk, wv, wo, num_heads)


def indicator_attention(
    indicators: Tensor, inputs: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, num_heads: int
) -> Tensor:
    """Eq. (21), task by task; shapes as in the front door."""
    outputs = [
        _attend(indicator.expand(inputs.shape[0], 1, -1), inputs, key, value, output, num_heads)
        for indicator, key, value, output in zip(indicators, wk, wv, wo, strict=True)
    ]
    return torch.cat(outputs, dim=1)
