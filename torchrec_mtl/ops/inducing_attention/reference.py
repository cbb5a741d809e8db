"""The definition: TAFE eq. (17)-(22) as they stand. Every other backend is tested against it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_mtl.ops.attention.reference import merge_heads, split_heads
from torchrec_mtl.ops.inducing_attention.stack import AdapterWeights, InducingLayer, InducingStack, gate


def _attend(
    queries: Tensor, inputs: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, num_heads: int, scale: float | None = None
) -> Tensor:
    """``queries [B, K, D]``, ``inputs [B, F, D]`` to ``[B, K, D]``."""
    query = split_heads(queries, num_heads)
    key = split_heads(inputs @ wk.T, num_heads)
    value = split_heads(inputs @ wv.T, num_heads)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    heads = scores.softmax(-1) @ value  # TAFE eq. (18)
    return merge_heads(heads) @ wo.T  # TAFE eq. (19)


def inducing_layer(inputs: Tensor, selection: Tensor, layer: InducingLayer) -> Tensor:
    """TAFE eq. (17)-(20); shapes as in the front door."""
    points, wk, wv, wo, norm_weight, norm_bias = layer.weights
    queries = (points * gate(selection, layer.z_grad).unsqueeze(-1)).to(inputs.dtype)  # TAFE eq. (17)
    output = _attend(queries, inputs, wk, wv, wo, layer.num_heads, layer.scale)
    if layer.residual != "none":
        output = output + (inputs if layer.residual == "input" else queries)
    return F.layer_norm(output, output.shape[-1:], norm_weight, norm_bias)  # TAFE eq. (20)


def adapter_layer(shared: Tensor, former: Tensor | None, adapter: AdapterWeights, num_heads: int) -> Tensor:
    """TAFE eq. (21)-(22), task by task.

    ``shared [B, K, D]`` and ``former [B, T, D]``, the adapted representations of the layer before (None in the first
    layer), to ``[B, T, D]``.
    """
    outputs = []
    for task, (indicator, wk, wv, wo, norm_weight, norm_bias) in enumerate(zip(*adapter, strict=True)):
        query = indicator.expand(len(shared), 1, -1)
        output = _attend(query, shared, wk, wv, wo, num_heads).squeeze(1)  # TAFE eq. (21)
        if former is not None:
            output = output + former[:, task]
        outputs.append(F.layer_norm(output, output.shape[-1:], norm_weight, norm_bias))  # TAFE eq. (22)
    return torch.stack(outputs, dim=1)


def inducing_stack(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    """TAFE eq. (17)-(22); shapes as in the front door."""
    adapted = None
    for layer, adapter in stack.unbind():
        inputs = inducing_layer(inputs, selection, layer)
        adapted = adapter_layer(inputs, adapted, adapter, stack.num_heads)
    assert adapted is not None  # there is at least one layer
    return adapted
