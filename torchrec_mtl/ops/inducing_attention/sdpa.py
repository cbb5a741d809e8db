"""TAFE eq. (17)-(22) by PyTorch's fused attention, on any device.

A row of the inputs may stand for ``n`` equal rows: as a key it weighs as much as ``n`` keys, so its score gets
``+ log(n)``. Where z masks, its score gets ``+ log(z)`` in the same way, and ``some`` is False for a sample that
attends to none of its rows.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_mtl.ops.attention.reference import merge_heads, split_heads
from torchrec_mtl.ops.backends import refuse_missing_second_derivatives
from torchrec_mtl.ops.inducing_attention.stack import AdapterWeights, InducingLayer, InducingStack, gate, key_bias


def _rows_layer(
    inputs: Tensor,
    queries: Tensor,
    layer: InducingLayer,
    log_counts: Tensor | None = None,
    some: Tensor | None = None,
) -> Tensor:
    """Eq. (18)-(20) for queries ``[B, R, D]`` and inputs ``[B, N, D]``; they stand for ``exp(log_counts)`` rows."""
    _, wk, wv, wo, norm_weight, norm_bias = layer.weights
    query, key, value = (split_heads(x, layer.num_heads) for x in (queries, inputs @ wk.T, inputs @ wv.T))
    bias = None if log_counts is None else log_counts[:, None, None].to(query.dtype)  # cuDNN misreads any other type
    refuse_missing_second_derivatives(query, key, value)
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=layer.scale)
    output = merge_heads(context if some is None else context * some[:, None, None]) @ wo.T
    if layer.residual != "none":
        output = output + (inputs if layer.residual == "input" else queries)
    return F.layer_norm(output, output.shape[-1:], norm_weight, norm_bias)


def adapter_layer(
    shared: Tensor,
    former: Tensor | None,
    adapter: AdapterWeights,
    num_heads: int,
    log_counts: Tensor | None = None,
    some: Tensor | None = None,
) -> Tensor:
    """Eq. (21)-(22) for all tasks at once, with ``a Wk^T / sqrt(d_h)`` and ``Wv Wo`` folded once per step.

    ``shared [B, R, D]`` and ``former [B, T, D]``, the adapted representations of the layer before (None in the first
    layer), to ``[B, T, D]``. Row ``r`` of ``shared`` stands for ``exp(log_counts[:, r])`` rows.
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
    if some is not None:
        output = output * some.unsqueeze(1)
    if former is not None:
        output = output + former
    return F.layer_norm(output, (dim,)) * norm_weight + norm_bias


def inducing_layer(inputs: Tensor, selection: Tensor, layer: InducingLayer) -> Tensor:
    """Eq. (17)-(20); shapes as in the front door."""
    queries = layer.weights.points * gate(selection, layer.z_grad).unsqueeze(-1)
    return _rows_layer(inputs, queries.to(inputs.dtype), layer)


def rows_stack(
    inputs: Tensor,
    query: Callable[[Tensor], Tensor],
    stack: InducingStack,
    log_counts: Tensor | None = None,
    some: Tensor | None = None,
) -> Tensor:
    """Eq. (17)-(22); ``query`` turns a layer's points ``[K, D]`` into its queries ``[B, R, D]``."""
    adapted: Tensor | None = None
    of_keys: tuple[Tensor | None, Tensor | None] = (None, None)
    for layer, adapter in stack.unbind():
        inputs = _rows_layer(inputs, query(layer.weights.points).to(inputs.dtype), layer, *of_keys)
        of_keys = (log_counts, some)
        adapted = adapter_layer(inputs, adapted, adapter, stack.num_heads, *of_keys)
    assert adapted is not None  # there is at least one layer
    return adapted


def inducing_stack(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    """Eq. (17)-(22) with all ``K`` rows; shapes as in the front door."""
    scalars = gate(selection, stack.z_grad).unsqueeze(-1)
    of_keys = key_bias(selection) if stack.masked else (None, None)
    return rows_stack(inputs, lambda points: points * scalars, stack, *of_keys)
