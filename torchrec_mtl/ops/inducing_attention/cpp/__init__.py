"""A C++ kernel for the CPU, float32 and float64: each SIMD lane holds one sample; identical rows are computed once.

The kernel is optional: ``python -m torchrec_mtl.ops.build`` builds it.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from torchrec_mtl.ops import library
from torchrec_mtl.ops.backends import differentiable_gradients
from torchrec_mtl.ops.inducing_attention import reference
from torchrec_mtl.ops.inducing_attention.stack import AdapterWeights, GeneratorWeights, InducingStack


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    fields, selection, weights, *ctx.arguments = inputs
    ctx.save_for_backward(fields, selection, *weights)


def _defined(inputs: Tensor, selection: Tensor, *weights: Tensor, arguments: tuple[int, str, bool, bool]) -> Tensor:
    """The operator by the definition, which can be differentiated any number of times."""
    num_heads, residual, gated, masked = arguments
    stack = InducingStack(
        GeneratorWeights(*weights[:6]),
        AdapterWeights(*weights[6:]),
        num_heads=num_heads,
        residual=residual,
        z_grad="gated" if gated else "full",
        masked=masked,
    )
    return reference.inducing_stack(inputs, selection, stack)


def _gradients(ctx, upstream):  # type: ignore[no-untyped-def]
    none = 4 * [None]
    if torch.is_grad_enabled():  # create_graph=True
        defined = functools.partial(_defined, arguments=tuple(ctx.arguments))
        d_inputs, d_selection, *d_weights = differentiable_gradients(defined, ctx.saved_tensors, upstream)
        return d_inputs, d_selection, d_weights, *none
    inputs, selection, *weights = ctx.saved_tensors
    d_inputs, d_selection, flat = torch.ops.torchrec_mtl.inducing_stack_cpp_backward(
        inputs, selection, weights, upstream, *ctx.arguments
    )
    sizes = [x.numel() for x in weights]
    d_weights = [part.view(x.shape) for part, x in zip(flat.split(sizes), weights, strict=True)]
    return d_inputs, d_selection, d_weights, *none


def _like_adapted(inputs: Tensor, selection: Tensor, weights: list[Tensor], *_: Any) -> Tensor:
    return inputs.new_empty(inputs.shape[0], *weights[6].shape[1:])


def _like_gradients(inputs: Tensor, selection: Tensor, weights: list[Tensor], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    flat = inputs.new_empty(sum(x.numel() for x in weights))
    return inputs.new_empty(inputs.shape), selection.new_empty(selection.shape), flat


if library.load():
    torch.library.register_fake("torchrec_mtl::inducing_stack_cpp", _like_adapted)
    torch.library.register_fake("torchrec_mtl::inducing_stack_cpp_backward", _like_gradients)
    torch.library.register_autograd("torchrec_mtl::inducing_stack_cpp", _gradients, setup_context=_save)


def inducing_stack(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    """Eq. (17)-(22); shapes as in the front door. Second derivatives are the reference's.

    The result has the same bits for any number of threads (`torch.set_num_threads`).

    Raises:
        InputError: if the tensors are not on the CPU, or not all float32 or all float64; or if the kernel is not built.
        RuntimeError: if a shape does not fit.
    """
    weights = [*stack.layers, *stack.adapters]
    library.require("inducing-attention", inputs, selection, *weights)
    arguments = (stack.num_heads, stack.residual, stack.z_grad == "gated", stack.masked)
    adapted: Tensor = torch.ops.torchrec_mtl.inducing_stack_cpp(inputs, selection, weights, *arguments)
    return adapted
