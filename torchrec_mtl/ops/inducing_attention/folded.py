"""The same attention with the projections folded into the points.

The queries are parameters, so ``scores_j = (I_j Wk_j^T) H^T`` and ``O = sum_j A_j H (Wv_j Wo_j)``: two products of
weights alone, once per step, replace every sample's keys, values and their projections.

Letters in the einsums: b batch, t task, j head, k point, f input row, d and e embedding, h column of a head.
"""

import torch
from torch import Tensor


def _fold_keys(points: Tensor, wk: Tensor, num_heads: int) -> Tensor:
    """``P_j = I_j Wk_j^T / sqrt(d_h)``: points ``[..., K, D]``, ``Wk [..., D, D]`` to ``[..., m, K, D]``."""
    heads = points.unflatten(-1, (num_heads, -1))
    folded = torch.einsum("...kjh,...jhd->...jkd", heads, wk.unflatten(-2, (num_heads, -1)))
    return folded / heads.shape[-1] ** 0.5


def _fold_values(wv: Tensor, wo: Tensor, num_heads: int) -> Tensor:
    """``M_j = Wv_j Wo_j``: ``[..., D, D]`` twice to ``[..., m, D, D]``, inputs times it."""
    values, outputs = wv.unflatten(-2, (num_heads, -1)), wo.unflatten(-1, (num_heads, -1))
    return torch.einsum("...jhd,...ejh->...jde", values, outputs)


def inducing_attention(
    points: Tensor, selection: Tensor, inputs: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, num_heads: int
) -> Tensor:
    """Eq. (17)-(19); shapes as in the front door."""
    num_points = points.shape[0]
    folded = _fold_keys(points, wk, num_heads).flatten(0, 1)  # [m K, D]
    scores = (inputs @ folded.T).transpose(1, 2).unflatten(1, (num_heads, num_points))  # [B, m, K, F]
    weights = (scores * selection[:, None, :, None]).softmax(-1).to(inputs.dtype)
    context = (weights.flatten(1, 2) @ inputs).unflatten(1, (num_heads, num_points))  # [B, m, K, D]
    return context.transpose(1, 2).flatten(2) @ _fold_values(wv, wo, num_heads).flatten(0, 1)


def indicator_attention(
    indicators: Tensor, inputs: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, num_heads: int
) -> Tensor:
    """Eq. (21); shapes as in the front door."""
    num_tasks = indicators.shape[0]
    folded = _fold_keys(indicators.unsqueeze(1), wk, num_heads).flatten(0, 2)  # [T m, D]
    weights = (inputs @ folded.T).transpose(1, 2).softmax(-1)  # [B, T m, K]
    context = (weights @ inputs).unflatten(1, (num_tasks, num_heads))  # [B, T, m, D]
    return torch.einsum("btjd,tjde->bte", context, _fold_values(wv, wo, num_heads))
