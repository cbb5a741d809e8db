"""Attention between small sets on the CPU, float32 and float64: a C++ kernel with one sample in each SIMD lane.

Batched products of matrices as small as 34 x 8 spend their time on calls, padding and memory traffic. Here a sample
stays in the core's own cache. The kernel is optional: ``python -m torchrec_mtl.ops.build`` builds it.
"""

import ctypes
import functools

import torch
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops import library
from torchrec_mtl.ops.attention import reference
from torchrec_mtl.ops.backends import differentiable_gradients, registered_name


def _check(queries: Tensor, inputs: Tensor, weights: tuple[Tensor, ...], num_heads: int) -> None:
    """Checks the shapes by which the kernel reads memory."""
    batch, _, dim = queries.shape
    if inputs.ndim != 3 or inputs.shape[0] != batch or inputs.shape[2] != dim or not inputs.shape[1]:
        raise InputError(f"`inputs` (of shape {list(inputs.shape)}) must be [{batch}, M, {dim}], M at least 1")
    if any(weight.shape != (dim, dim) for weight in weights):
        raise InputError(f"the weights (of shapes {[list(x.shape) for x in weights]}) must be [{dim}, {dim}]")
    if num_heads < 1 or dim < 1 or dim % num_heads:
        raise InputError(f"`num_heads` (={num_heads}) must divide the embedding dimension (={dim})")


def _call(function: str, num_heads: int, read: list[Tensor], written: list[Tensor]) -> None:
    queries, inputs, *_ = read = [x.contiguous() for x in read]
    shape = (ctypes.c_int64 * 5)(*queries.shape[:2], *inputs.shape[1:], num_heads)
    addresses = [ctypes.c_void_p(x.data_ptr()) for x in (*read, *written)]
    library.function(function, queries.dtype)(shape, *addresses, ctypes.c_int(torch.get_num_threads()))


@torch.library.custom_op(registered_name("small_attention"), mutates_args=(), device_types="cpu")
def _forward(
    queries: Tensor, inputs: Tensor, query_weight: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int
) -> Tensor:
    weights = (query_weight, key_weight, value_weight)
    library.require("attention", queries, inputs, *weights)  # a saved program may run where there is no library
    _check(queries, inputs, weights, num_heads)
    output = queries.new_empty(queries.shape)
    _call("forward", num_heads, [queries, inputs, *weights], [output])
    return output


@_forward.register_fake
def _(
    queries: Tensor, inputs: Tensor, query_weight: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int
) -> Tensor:
    return queries.new_empty(queries.shape)


@torch.library.custom_op(registered_name("small_attention_backward"), mutates_args=(), device_types="cpu")
def _backward(
    queries: Tensor,
    inputs: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    upstream: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    read = [queries, inputs, query_weight, key_weight, value_weight, upstream]
    library.require("attention", *read)
    written = _empty_gradients(queries, inputs, query_weight)
    _call("backward", num_heads, read, [*written])
    return written


@_backward.register_fake
def _(
    queries: Tensor,
    inputs: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    upstream: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_gradients(queries, inputs, query_weight)


def _empty_gradients(queries: Tensor, inputs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the gradients of the queries, of the inputs, and of the three weights in one tensor."""
    return queries.new_empty(queries.shape), inputs.new_empty(inputs.shape), weight.new_empty(3, *weight.shape)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors)


def _defined(queries: Tensor, inputs: Tensor, scaled: Tensor, wk: Tensor, wv: Tensor, num_heads: int) -> Tensor:
    """`_forward` by the definition, which can be differentiated any number of times."""
    wq = scaled * (scaled.shape[0] // num_heads) ** 0.5
    return reference.attention(queries, inputs, wq, wk, wv, num_heads)


def _gradients(ctx, upstream):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():  # create_graph=True
        defined = functools.partial(_defined, num_heads=ctx.num_heads)
        return *differentiable_gradients(defined, ctx.saved_tensors, upstream), None
    d_queries, d_inputs, d_weights = _backward(*ctx.saved_tensors, upstream, ctx.num_heads)
    return d_queries, d_inputs, *d_weights.unbind(), None


_forward.register_autograd(_gradients, setup_context=_save)


def attention(
    queries: Tensor, inputs: Tensor, query_weight: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int = 1
) -> Tensor:
    """BPCM eq. (2)-(3); arguments as in `torchrec_mtl.ops.attention`. Second derivatives are the reference's.

    The result has the same bits for any number of threads (`torch.set_num_threads`). Even under autocast it computes in
    the type of its arguments.

    Raises:
        InputError: if the tensors are not on the CPU, or not all float32 or all float64; if the kernel is not built;
            or if a shape does not fit.
    """
    library.require("attention", queries, inputs, query_weight, key_weight, value_weight)
    scaled = query_weight / (query_weight.shape[0] // num_heads) ** 0.5
    return _forward(queries, inputs, scaled, key_weight, value_weight, num_heads)
