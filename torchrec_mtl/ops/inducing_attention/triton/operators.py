"""TAFE's layers and task adapters as two PyTorch operators, one for each kernel: `forward` and `backward`.

This file folds the weights and registers the kernels with autograd, `torch.compile` and `torch.export`. The tests run
the kernels on a GPU or in Triton's interpreter, and compile them for sm_80, sm_90 and gfx942; docs/gpu.md has what an
H200 gave.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torchrec_mtl.ops.backends import compute_dtype, refuse_second_derivatives, registered_name
from torchrec_mtl.ops.inducing_attention.stack import GeneratorWeights, InducingLayer, InducingStack
from torchrec_mtl.ops.inducing_attention.triton.launch import launch_backward, launch_forward, like_output, to_keep

# `tensors` are H, z, P, M, I, LayerNorm's weight and bias, then the adapters' a, M, weight and bias; `forward_kernel`
# gives the shapes. `first` is the first layer's residual.


@torch.library.custom_op(registered_name("inducing_stack"), mutates_args=())
def forward(tensors: list[Tensor], first: str, residual: str, dense: bool, gated: bool, keep: bool) -> list[Tensor]:
    """Returns the output and, with ``keep``, what the backward needs."""
    return launch_forward([x.contiguous() for x in tensors], (first, residual), dense, keep)


@forward.register_fake
def _(tensors: list[Tensor], first: str, residual: str, dense: bool, gated: bool, keep: bool) -> list[Tensor]:
    return [like_output(tensors), *to_keep(tensors, tensors[0].shape[0] if keep else 0)]


@torch.library.custom_op(registered_name("inducing_stack_backward"), mutates_args=())
def backward(
    upstream: Tensor, tensors: list[Tensor], kept: list[Tensor], first: str, residual: str, gated: bool
) -> list[Tensor]:
    """Returns dH, dz, and the gradients of the other ``tensors`` in one float32 tensor."""
    tensors = [x.contiguous() for x in tensors]
    return launch_backward(upstream.contiguous(), tensors, kept, (first, residual), gated)


@backward.register_fake
def _(
    upstream: Tensor, tensors: list[Tensor], kept: list[Tensor], first: str, residual: str, gated: bool
) -> list[Tensor]:
    weights = sum(x.numel() for x in tensors[2:])
    return [*(x.new_empty(x.shape) for x in tensors[:2]), upstream.new_empty(weights, dtype=torch.float32)]


def _save(ctx: Any, inputs: Any, output: list[Tensor]) -> None:
    tensors, *ctx.residuals, _, ctx.gated, _ = inputs
    ctx.num_tensors = len(tensors)
    ctx.save_for_backward(*tensors, *output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, upstream: list[Tensor | None]) -> Any:
    if upstream[0] is None:
        return (None,) * 6
    saved = list(ctx.saved_tensors)  # read once: under a checkpoint they can be read only once
    tensors, kept = saved[: ctx.num_tensors], saved[ctx.num_tensors :]
    d_inputs, d_selection, flat = backward(upstream[0], tensors, kept, *ctx.residuals, ctx.gated)
    weights = tensors[2:]
    parts = flat.split([x.numel() for x in weights])
    d_weights = [part.view(x.shape).to(x.dtype) for part, x in zip(parts, weights, strict=True)]
    return [d_inputs, d_selection, *d_weights], None, None, None, None, None


forward.register_autograd(_gradients, setup_context=_save)
backward.register_autograd(refuse_second_derivatives)


def _fold(queries: Tensor, wk: Tensor, wv: Tensor, wo: Tensor, num_heads: int, scale: float | None) -> list[Tensor]:
    """Multiplies weights with weights, in float32, once per step: ``P_j = scale q_j Wk_j^T`` and ``M_j = Wv_j Wo_j``.

    ``queries [..., N, D]`` and weights ``[..., D, D]`` to ``[..., m, N, D]`` and ``[..., m, D, D]``.
    Letters in the einsums: j head, h column of a head, n query, d and e embedding.
    """
    queries, wk, wv, wo = (x.float() for x in (queries, wk, wv, wo))
    heads = queries.unflatten(-1, (num_heads, -1))
    keys, values = wk.unflatten(-2, (num_heads, -1)), wv.unflatten(-2, (num_heads, -1))
    folded = torch.einsum("...njh,...jhd->...jnd", heads, keys) * (heads.shape[-1] ** -0.5 if scale is None else scale)
    return [folded, torch.einsum("...jhd,...ejh->...jde", values, wo.unflatten(-1, (num_heads, -1)))]


def _run(
    inputs: Tensor,
    selection: Tensor,
    layers: GeneratorWeights,
    adapters: list[Tensor],
    num_heads: int,
    scale: float | None,
    residuals: tuple[str, str],
    dense: bool,
    z_grad: str,
) -> Tensor:
    dtype = compute_dtype(inputs)
    points, wk, wv, wo, norm_weight, norm_bias = layers
    with torch.autocast(inputs.device.type, enabled=False):
        folded = [x.to(dtype) for x in _fold(points, wk, wv, wo, num_heads, scale)]
        tensors = [inputs.to(dtype), selection.float(), *folded]
        tensors += [x.float() for x in (points, norm_weight, norm_bias)] + adapters
        keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
        return forward(tensors, *residuals, dense or z_grad == "full", z_grad == "gated", keep)[0]


def inducing_layer(inputs: Tensor, selection: Tensor, layer: InducingLayer) -> Tensor:
    """Eq. (17)-(20); shapes as in the front door.

    With the input as residual, the rows of points at 0 differ from each other, so all rows are computed.
    """
    dim, dtype, heads = inputs.shape[-1], compute_dtype(inputs), layer.num_heads
    no_adapters = [
        inputs.new_empty(1, 0, heads, dim, dtype=dtype),
        inputs.new_empty(1, 0, heads, dim, dim, dtype=dtype),
        *(inputs.new_empty(1, 0, dim, dtype=torch.float32) for _ in range(2)),
    ]
    weights = GeneratorWeights(*(x.unsqueeze(0) for x in layer.weights))
    residuals, dense = (layer.residual, layer.residual), layer.residual == "input"
    return _run(inputs, selection, weights, no_adapters, heads, layer.scale, residuals, dense, layer.z_grad)


def inducing_stack(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    """Eq. (17)-(22); shapes as in the front door."""
    indicators, wk, wv, wo, norm_weight, norm_bias = stack.adapters
    dtype, heads = compute_dtype(inputs), stack.num_heads
    with torch.autocast(inputs.device.type, enabled=False):
        keys, values = _fold(indicators.unsqueeze(-2), wk, wv, wo, heads, None)
        folded = [keys.squeeze(-2).to(dtype), values.to(dtype), norm_weight.float(), norm_bias.float()]
    return _run(inputs, selection, stack.layers, folded, heads, None, stack.residuals, False, stack.z_grad)


@register_flop_formula([torch.ops.torchrec_mtl.inducing_stack, torch.ops.torchrec_mtl.inducing_stack_backward])
def _flops(*shapes: Any, **_: Any) -> int:
    """Counts the dense stack, recomputation in the backward included; a selection with zeros takes fewer."""
    backward = not isinstance(shapes[0][0], (tuple, list, torch.Size))
    tensors = shapes[1] if backward else shapes[0]
    batch, fields, dim = tensors[0]
    layers, heads, points, _ = tensors[2]
    tasks = tensors[7][1]
    square, keys = 2 * heads * points * dim * dim, fields + (layers - 1) * points
    attention = 2 * heads * points * dim * keys
    adapter, adapter_square = 2 * layers * tasks * heads * points * dim, 2 * layers * tasks * heads * dim * dim
    products = (6, 2, 5, 2) if backward else (2, 1, 2, 1)
    parts = (attention, layers * square, adapter, adapter_square)
    return batch * sum(n * x for n, x in zip(products, parts, strict=True))
