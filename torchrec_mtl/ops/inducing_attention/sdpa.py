"""By PyTorch's fused attention, on any device; a row of the inputs may stand for several equal ones.

A key that stands for ``n`` rows has the weight of ``n``: ``+ log(n)`` on its score.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_mtl.ops.attention import merge_heads, split_heads
from torchrec_mtl.ops.inducing_attention.stack import InducingLayer, InducingStack, gate
from torchrec_mtl.ops.inducing_attention.weights import AdapterWeights


def _rows_layer(inputs: Tensor, queries: Tensor, layer: InducingLayer, log_counts: Tensor | None = None) -> Tensor:
    """Eq. (18)-(20): queries ``[B, R, D]``, inputs ``[B, N, D]``, logarithms of what they stand for ``[B, N]``."""
    _, wk, wv, wo, norm_weight, norm_bias = layer.weights
    query, key, value = (split_heads(x, layer.num_heads) for x in (queries, inputs @ wk.T, inputs @ wv.T))
    bias = None if log_counts is None else log_counts[:, None, None]
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=layer.scale)
    output = merge_heads(context) @ wo.T
    if layer.residual != "none":
        output = output + (inputs if layer.residual == "input" else queries)
    return F.layer_norm(output, output.shape[-1:], norm_weight, norm_bias)


def adapter_layer(
    shared: Tensor,
    former: Tensor | None,
    adapter: AdapterWeights,
    num_heads: int,
    log_counts: Tensor | None = None,
) -> Tensor:
    """Eq. (21)-(22) for all tasks at once, with ``a Wk^T / sqrt(d_h)`` and ``Wv Wo`` folded once per step.

    ``shared [B, R, D]``, which stand for as many rows as ``log_counts [B, R]`` says, and the former layer's adapted
    representations ``[B, T, D]``, None in the first, to ``[B, T, D]``.
    Letters in the einsums: b batch, t task, j head, d and e embedding, h column of a head.
    """
    indicators, wk, wv, wo, norm_weight, norm_bias = adapter
    num_tasks, dim = indicators.shape
    heads = (num_heads, dim // num_heads)
    keys = torch.einsum("tjh,tjhd->tjd", indicators.unflatten(1, heads), wk.unflatten(1, heads)) * heads[1] ** -0.5
    values = torch.einsum("tjhd,tejh->tjde", wv.unflatten(1, heads), wo.unflatten(2, heads))
    scores = (shared @ keys.flatten(0, 1).T).transpose(1, 2)  # [B, T m, R]
    if log_counts is not None:
        scores = scores + log_counts.unsqueeze(1)
    context = (scores.softmax(-1).to(shared.dtype) @ shared).unflatten(1, (num_tasks, num_heads))
    output = torch.einsum("btjd,tjde->bte", context, values)
    if former is not None:
        output = output + former
    return F.layer_norm(output, (dim,)) * norm_weight + norm_bias


def inducing_layer(inputs: Tensor, selection: Tensor, layer: InducingLayer) -> Tensor:
    """Eq. (17)-(20); shapes as in the front door."""
    queries = layer.weights.points * gate(selection, layer.z_grad).unsqueeze(-1)
    return _rows_layer(inputs, queries.to(inputs.dtype), layer)


def rows_stack(
    inputs: Tensor, query: Callable[[Tensor], Tensor], stack: InducingStack, log_counts: Tensor | None = None
) -> Tensor:
    """Eq. (17)-(22), where ``query`` makes a layer's points ``[K, D]`` the queries ``[B, R, D]``."""
    adapted, counts = None, None
    for layer, adapter in stack.unbind():
        inputs = _rows_layer(inputs, query(layer.weights.points).to(inputs.dtype), layer, counts)
        counts = log_counts
        adapted = adapter_layer(inputs, adapted, adapter, stack.num_heads, counts)
    assert adapted is not None  # there is at least one layer
    return adapted


def inducing_stack(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    """Eq. (17)-(22) of all ``K`` rows; shapes as in the front door."""
    scalars = gate(selection, stack.z_grad).unsqueeze(-1)
    return rows_stack(inputs, lambda points: points * scalars, stack)
