"""TAFE's layers and task adapters as two PyTorch operators, one for each direction, on the CUDA C++ kernels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from torchrec_mtl.ops.backends import refuse_second_derivatives, registered_name
from torchrec_mtl.ops.inducing_attention.cuda.instances import precision_of
from torchrec_mtl.ops.inducing_attention.cuda.launch import (
    launch_backward,
    launch_forward,
    like_gradients,
    like_output,
    to_keep,
    width_of,
)
from torchrec_mtl.ops.inducing_attention.stack import InducingStack

# `inputs` are padded to [B, F, width]; `weights` are those of the layers, then of the adapters; `first` is the first
# layer's residual.


@torch.library.custom_op(registered_name("inducing_stack_cuda"), mutates_args=())
def forward(
    inputs: Tensor,
    selection: Tensor,
    weights: list[Tensor],
    num_heads: int,
    first: str,
    residual: str,
    masked: bool,
    precision: str,
    keep: bool,
) -> list[Tensor]:
    """Returns the output and what else was written: with ``keep``, what the backward needs."""
    return launch_forward(inputs, selection, weights, num_heads, (first, residual), masked, precision, keep)


@forward.register_fake
def _(
    inputs: Tensor,
    selection: Tensor,
    weights: list[Tensor],
    num_heads: int,
    first: str,
    residual: str,
    masked: bool,
    precision: str,
    keep: bool,
) -> list[Tensor]:
    return [like_output(inputs, weights), to_keep(inputs, weights, num_heads, keep)]


@torch.library.custom_op(registered_name("inducing_stack_cuda_backward"), mutates_args=())
def backward(
    upstream: Tensor,
    inputs: Tensor,
    selection: Tensor,
    weights: list[Tensor],
    kept: Tensor,
    num_heads: int,
    first: str,
    residual: str,
    masked: bool,
    precision: str,
) -> list[Tensor]:
    """Returns dH, dz, and the gradients of ``weights`` in one float32 tensor."""
    residuals = (first, residual)
    return launch_backward(upstream, inputs, selection, weights, kept, num_heads, residuals, masked, precision)


@backward.register_fake
def _(
    upstream: Tensor,
    inputs: Tensor,
    selection: Tensor,
    weights: list[Tensor],
    kept: Tensor,
    num_heads: int,
    first: str,
    residual: str,
    masked: bool,
    precision: str,
) -> list[Tensor]:
    return like_gradients(inputs, selection, weights)


def _save(ctx: Any, inputs: Any, output: list[Tensor]) -> None:
    fields, selection, weights, *ctx.arguments, _ = inputs
    ctx.save_for_backward(fields, selection, *weights, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, upstream: list[Tensor | None]) -> Any:
    none = (None,) * 6
    if upstream[0] is None:
        return None, None, None, *none
    inputs, selection, *weights, kept = ctx.saved_tensors  # read once: under a checkpoint they can be read only once
    d_inputs, d_selection, flat = backward(upstream[0], inputs, selection, weights, kept, *ctx.arguments)
    parts = flat.split([x.numel() for x in weights])
    d_weights = [part.view(x.shape).to(x.dtype) for part, x in zip(parts, weights, strict=True)]
    return d_inputs, d_selection, d_weights, *none


forward.register_autograd(_gradients, setup_context=_save)
backward.register_autograd(refuse_second_derivatives)


def _compute_dtype(inputs: Tensor) -> torch.dtype:
    device = inputs.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype


def inducing_stack(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    """Eq. (17)-(22); shapes as in the front door."""
    dtype, dim = _compute_dtype(inputs), inputs.shape[2]
    weights = [*stack.layers, *stack.adapters]
    if any(x.dtype != weights[0].dtype for x in weights):
        weights = [x.float() for x in weights]
    tensors = [inputs.to(dtype), selection.float(), *weights]
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    padding = width_of(dim) - dim
    if padding:
        tensors[0] = F.pad(tensors[0], (0, padding))
    arguments = (stack.num_heads, *stack.residuals, stack.masked, precision_of(dtype), keep)
    output: Tensor = forward(tensors[0], tensors[1], tensors[2:], *arguments)[0]
    return output[..., :dim] if padding else output


@register_flop_formula(
    [torch.ops.torchrec_mtl.inducing_stack_cuda, torch.ops.torchrec_mtl.inducing_stack_cuda_backward]
)
def _flops(*shapes: Any, **_: Any) -> int:
    """Counts the dense stack, recomputation in the backward included; a selection with zeros takes fewer."""
    is_backward = isinstance(shapes[4], (tuple, list, torch.Size))
    inputs, _selection, weights = shapes[1:4] if is_backward else shapes[:3]
    num_heads: int = shapes[5] if is_backward else shapes[3]
    (batch, fields, _), (layers, points, dim), tasks = inputs, weights[0], weights[6][1]
    keys = fields + (layers - 1) * points
    scores, contexts = 2 * num_heads * points * dim * keys, 2 * points * dim * keys  # the scores are folded
    projections = 2 * dim * dim * (keys + layers * points)
    adapter, adapter_square = 2 * layers * tasks * num_heads * points * dim, 4 * layers * tasks * dim * dim
    products = (3, 3, 3, 5, 3) if is_backward else (1, 1, 1, 2, 1)
    parts = (scores, contexts, projections, adapter, adapter_square)
    return batch * sum(n * x for n, x in zip(products, parts, strict=True))
