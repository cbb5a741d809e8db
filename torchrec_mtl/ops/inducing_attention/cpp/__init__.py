"""A C++ kernel for the CPU, float32 and float64: each SIMD lane holds one sample; identical rows are computed once.

The kernel is optional: ``python -m torchrec_mtl.ops.build`` builds it.
"""

import ctypes
import functools

import torch
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops import library
from torchrec_mtl.ops.backends import differentiable_gradients, registered_name
from torchrec_mtl.ops.inducing_attention import reference
from torchrec_mtl.ops.inducing_attention.stack import AdapterWeights, GeneratorWeights, InducingStack

_KERNEL = "inducing-attention"
_RESIDUALS = ("none", "query", "input")  # in the kernel's numbering


def _check(inputs: Tensor, selection: Tensor, weights: list[Tensor], num_heads: int) -> None:
    """Checks the shapes by which the kernel reads memory."""
    points, indicators = weights[0], weights[6]
    if points.ndim != 3 or indicators.ndim != 3 or not (points.numel() and indicators.numel()):
        shapes = [list(x.shape) for x in (points, indicators)]
        raise InputError(f"points and indicators (of shapes {shapes}) must be [L, K, D] and [L, T, D], none of them 0")
    (num_layers, num_points, dim), num_tasks = points.shape, indicators.shape[1]
    layer = [(dim, dim)] * 3 + [(dim,)] * 2
    expected = [(num_layers, *x) for x in [(num_points, dim), *layer]]
    expected += [(num_layers, num_tasks, *x) for x in [(dim,), *layer]]
    if [tuple(x.shape) for x in weights] != expected:
        raise InputError(f"the weights (of shapes {[tuple(x.shape) for x in weights]}) must be {expected}")
    if inputs.ndim != 3 or inputs.shape[2] != dim or not inputs.shape[1]:
        raise InputError(f"`inputs` (of shape {list(inputs.shape)}) must be [B, F, {dim}], F at least 1")
    if selection.shape != (len(inputs), num_points):
        raise InputError(f"`selection` (of shape {list(selection.shape)}) must be [{len(inputs)}, {num_points}]")
    if num_heads < 1 or dim % num_heads:
        raise InputError(f"`num_heads` (={num_heads}) must divide the embedding dimension (={dim})")


def _call(function: str, read: list[Tensor], num_heads: int, residual: str, gated: bool, written: list[Tensor]) -> None:
    inputs, _, *weights = read = [x.contiguous() for x in read]
    batch, num_fields, dim = inputs.shape
    sizes = (batch, num_fields, dim, weights[0].shape[1], len(weights[0]), weights[6].shape[1], num_heads)
    shape = (ctypes.c_int64 * 9)(*sizes, _RESIDUALS.index(residual), gated)
    addresses = (ctypes.c_void_p * len(read))(*(x.data_ptr() for x in read))
    arguments = [ctypes.c_void_p(x.data_ptr()) for x in written]
    kernel = library.function(f"inducing_{function}", inputs.dtype)
    kernel(shape, addresses, *arguments, ctypes.c_int(torch.get_num_threads()))


@torch.library.custom_op(registered_name("inducing_stack_cpp"), mutates_args=(), device_types="cpu")
def _forward(
    inputs: Tensor, selection: Tensor, weights: list[Tensor], num_heads: int, residual: str, gated: bool
) -> Tensor:
    library.require(_KERNEL, inputs, selection, *weights)  # a saved program may run where there is no library
    _check(inputs, selection, weights, num_heads)
    output = inputs.new_empty(len(inputs), *weights[6].shape[1:])
    _call("forward", [inputs, selection, *weights], num_heads, residual, gated, [output])
    return output


@_forward.register_fake
def _(inputs: Tensor, selection: Tensor, weights: list[Tensor], num_heads: int, residual: str, gated: bool) -> Tensor:
    return inputs.new_empty(inputs.shape[0], *weights[6].shape[1:])


@torch.library.custom_op(registered_name("inducing_stack_cpp_backward"), mutates_args=(), device_types="cpu")
def _backward(
    inputs: Tensor,
    selection: Tensor,
    weights: list[Tensor],
    upstream: Tensor,
    num_heads: int,
    residual: str,
    gated: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    library.require(_KERNEL, inputs, selection, *weights, upstream)
    written = _empty_gradients(inputs, selection, weights)
    read = [inputs, selection, *weights]
    _call("backward", read, num_heads, residual, gated, [upstream.contiguous(), *written])
    return written


@_backward.register_fake
def _(
    inputs: Tensor,
    selection: Tensor,
    weights: list[Tensor],
    upstream: Tensor,
    num_heads: int,
    residual: str,
    gated: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(inputs, selection, weights)


def _empty_gradients(inputs: Tensor, selection: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the gradients of the inputs, of the selection, and of all weights one after the other."""
    flat = inputs.new_empty(sum(x.numel() for x in weights))
    return inputs.new_empty(inputs.shape), selection.new_empty(selection.shape), flat


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    fields, selection, weights, *ctx.arguments = inputs
    ctx.save_for_backward(fields, selection, *weights)


def _defined(inputs: Tensor, selection: Tensor, *weights: Tensor, arguments: tuple[int, str, bool]) -> Tensor:
    """`_forward` by the definition, which can be differentiated any number of times."""
    num_heads, residual, gated = arguments
    stack = InducingStack(
        GeneratorWeights(*weights[:6]),
        AdapterWeights(*weights[6:]),
        num_heads=num_heads,
        residual=residual,
        z_grad="gated" if gated else "full",
    )
    return reference.inducing_stack(inputs, selection, stack)


def _gradients(ctx, upstream):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():  # create_graph=True
        defined = functools.partial(_defined, arguments=tuple(ctx.arguments))
        d_inputs, d_selection, *d_weights = differentiable_gradients(defined, ctx.saved_tensors, upstream)
        return d_inputs, d_selection, d_weights, None, None, None
    inputs, selection, *weights = ctx.saved_tensors
    d_inputs, d_selection, flat = _backward(inputs, selection, weights, upstream, *ctx.arguments)
    sizes = [x.numel() for x in weights]
    d_weights = [part.view(x.shape) for part, x in zip(flat.split(sizes), weights, strict=True)]
    return d_inputs, d_selection, d_weights, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def inducing_stack(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    """Eq. (17)-(22); shapes as in the front door. Second derivatives are the reference's.

    The result has the same bits for any number of threads (`torch.set_num_threads`). Even under autocast it computes in
    the type of its arguments.

    Raises:
        InputError: if the tensors are not on the CPU, or not all float32 or all float64; if the kernel is not built;
            or if a shape does not fit.
    """
    weights = [*stack.layers, *stack.adapters]
    library.require(_KERNEL, inputs, selection, *weights)
    return _forward(inputs, selection, weights, stack.num_heads, stack.residual, stack.z_grad == "gated")
