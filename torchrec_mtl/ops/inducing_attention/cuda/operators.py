"""TAFE's layers and task adapters as two PyTorch operators, one for each direction, on the CUDA C++ kernels."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils.flop_counter import register_flop_formula

from torchrec_mtl.ops.backends import compute_dtype, refuse_second_derivatives, registered_name
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


def _d_weights(flat: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Splits the gradients of the weights, all of one type: one cast for all of them."""
    return list(torch._utils._unflatten_dense_tensors(flat.to(weights[0].dtype), weights))


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
    return d_inputs, d_selection, _d_weights(flat, weights), *none


forward.register_autograd(_gradients, setup_context=_save)
backward.register_autograd(refuse_second_derivatives)


def _forward(arguments: tuple[Any, ...], tensors: Sequence[Tensor], keep: bool) -> list[Tensor]:
    num_heads, *residuals, masked, precision = arguments
    inputs, selection, *weights = tensors
    return launch_forward(inputs, selection, weights, num_heads, residuals, masked, precision, keep)


class _Direct(torch.autograd.Function):
    """What `forward` and its gradient compute, without the time that an operator written in Python takes.

    With a `setup_context` a call would take 70 microseconds more.
    """

    @staticmethod
    def forward(ctx: Any, arguments: tuple[Any, ...], *tensors: Tensor) -> Tensor:
        output, kept = _forward(arguments, tensors, keep=True)
        ctx.arguments = arguments
        ctx.save_for_backward(*tensors, kept)
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        inputs, selection, *weights, kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            gradients = backward(upstream, inputs, selection, weights, kept, *ctx.arguments)
        else:
            num_heads, *residuals, masked, precision = ctx.arguments
            gradients = launch_backward(
                upstream, inputs, selection, weights, kept, num_heads, residuals, masked, precision
            )
        return None, *gradients[:2], *_d_weights(gradients[2], weights)


def _is_traced(inputs: Tensor) -> bool:
    """Returns whether something other than autograd must see which operators run."""
    if torch.compiler.is_compiling():
        return True
    is_plain = type(inputs) in (Tensor, torch.nn.Parameter)
    return not is_plain or _get_current_dispatch_mode() is not None or torch._C._are_functorch_transforms_active()


def inducing_stack(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    """Eq. (17)-(22); shapes as in the front door."""
    dtype, dim = compute_dtype(inputs), inputs.shape[2]
    weights = [*stack.layers, *stack.adapters]
    if any(x.dtype != weights[0].dtype for x in weights):
        weights = [x.float() for x in weights]
    tensors = [inputs.to(dtype), selection.float(), *weights]
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    padding = width_of(dim) - dim
    if padding:
        tensors[0] = F.pad(tensors[0], (0, padding))
    arguments = (stack.num_heads, *stack.residuals, stack.masked, precision_of(dtype))
    if _is_traced(inputs):
        output = forward(*tensors[:2], tensors[2:], *arguments, keep)[0]
    elif keep:
        output = _Direct.apply(arguments, *tensors)
    else:
        output = _forward(arguments, tensors, keep=False)[0]
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
