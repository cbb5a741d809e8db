"""The definition: TAFE eq. (17)-(22) as they stand. Every other backend is tested against it.

It is also what TorchScript compiles, so `generate` and `adapt` are written in what TorchScript knows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_mtl.ops.attention.reference import merge_heads, split_heads
from torchrec_mtl.ops.inducing_attention.stack import (
    AdapterWeights,
    GeneratorWeights,
    InducingLayer,
    InducingStack,
    first_residual,
    gate,
    key_bias,
    unbind_adapter,
    unbind_generator,
)


def _attend(
    queries: Tensor,
    inputs: Tensor,
    wk: Tensor,
    wv: Tensor,
    wo: Tensor,
    num_heads: int,
    scale: float | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """``queries [B, K, D]``, ``inputs [B, F, D]`` to ``[B, K, D]``; ``mask`` is z of the inputs where it masks."""
    query = split_heads(queries, num_heads)
    key = split_heads(inputs @ wk.T, num_heads)
    value = split_heads(inputs @ wv.T, num_heads)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if mask is None:
        heads = scores.softmax(-1) @ value  # TAFE eq. (18)
    else:
        bias, some = key_bias(mask)
        heads = (scores + bias[:, None, None].to(scores.dtype)).softmax(-1) @ value * some[:, None, None]
    return merge_heads(heads) @ wo.T  # TAFE eq. (19)


def _layer(
    inputs: Tensor,
    selection: Tensor,
    weights: GeneratorWeights,
    num_heads: int,
    residual: str,
    scale: float | None = None,
    z_grad: str = "gated",
    mask: Tensor | None = None,
) -> Tensor:
    points, wk, wv, wo, norm_weight, norm_bias = weights
    queries = (points * gate(selection, z_grad).unsqueeze(-1)).to(inputs.dtype)  # TAFE eq. (17)
    output = _attend(queries, inputs, wk, wv, wo, num_heads, scale, mask)
    if residual != "none":
        output = output + (inputs if residual == "input" else queries)
    return F.layer_norm(output, output.shape[-1:], norm_weight, norm_bias)  # TAFE eq. (20)


def inducing_layer(inputs: Tensor, selection: Tensor, layer: InducingLayer) -> Tensor:
    """TAFE eq. (17)-(20); shapes as in the front door."""
    return _layer(inputs, selection, layer.weights, layer.num_heads, layer.residual, layer.scale, layer.z_grad)


def adapter_layer(
    shared: Tensor, former: Tensor | None, adapter: AdapterWeights, num_heads: int, mask: Tensor | None = None
) -> Tensor:
    """TAFE eq. (21)-(22), task by task.

    ``shared [B, K, D]`` and ``former [B, T, D]``, the adapted representations of the layer before (None in the first
    layer), to ``[B, T, D]``. ``mask`` is z of ``shared`` where it masks.
    """
    outputs: list[Tensor] = []
    for task, (indicator, wk, wv, wo, norm_weight, norm_bias) in enumerate(unbind_adapter(adapter)):
        query = indicator.expand(len(shared), 1, -1)
        output = _attend(query, shared, wk, wv, wo, num_heads, None, mask).squeeze(1)  # TAFE eq. (21)
        if former is not None:
            output = output + former[:, task]
        outputs.append(F.layer_norm(output, output.shape[-1:], norm_weight, norm_bias))  # TAFE eq. (22)
    return torch.stack(outputs, dim=1)


def generate(
    fields: Tensor,
    selections: list[Tensor],
    weights: GeneratorWeights,
    num_heads: int,
    residual: str,
    z_grad: str = "gated",
    masked: bool = False,
) -> list[Tensor]:
    """TAFE eq. (17)-(20): ``H [B, F, D]`` and ``z [B, K]`` of each layer to ``[Y^1, ..., Y^L]``, each ``[B, K, D]``.

    If z masks, z of each layer comes after them.
    """
    representations: list[Tensor] = []
    for place, layer in enumerate(unbind_generator(weights)):
        of_layer = residual if place else first_residual(residual)
        mask = selections[place - 1] if masked and place else None
        fields = _layer(fields, selections[place], layer, num_heads, of_layer, None, z_grad, mask)
        representations.append(fields)
    return representations + selections if masked else representations


def adapt(representations: list[Tensor], weights: AdapterWeights, num_heads: int) -> Tensor:
    """TAFE eq. (21)-(22): what `generate` gives to ``T^L [B, T, D]``."""
    adapted: Tensor | None = None
    layers = unbind_adapter(weights)
    masked = len(representations) > len(layers)
    for place, layer in enumerate(layers):
        mask = representations[len(layers) + place] if masked else None
        adapted = adapter_layer(representations[place], adapted, layer, num_heads, mask)
    assert adapted is not None  # there is at least one layer
    return adapted


def inducing_stack(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    """TAFE eq. (17)-(22); shapes as in the front door."""
    selections = [selection] * len(stack.layers.points)
    arguments = (stack.num_heads, stack.residual, stack.z_grad, stack.masked)
    representations = generate(inputs, selections, stack.layers, *arguments)
    return adapt(representations, stack.adapters, stack.num_heads)
