"""`torchrec_mtl.ops.attention` between small sets on the CPU: a C++ kernel in which each SIMD lane holds one sample.

Batched products of matrices as small as 34 x 8 spend their time on calls, padding and memory; here a sample stays in
the core's own cache. The kernel is optional: ``python -m torchrec_mtl.ops.small_attention.build`` builds it, and with
it that of `torchrec_mtl.ops.inducing_stack`, whose sources use the same parts.
"""

import ctypes

import torch
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.small_attention import library

_TYPES = {torch.float32: "float", torch.float64: "double"}
_NOT_BUILT = "it is not built: run `python -m torchrec_mtl.ops.small_attention.build`"


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _is_built() -> bool:
    return library.load() is not None


def why_not(*tensors: Tensor) -> str | None:
    """Why the kernels of this folder cannot take these tensors; None if they can."""
    if any(x.device.type != "cpu" for x in tensors):
        return "it runs on the CPU alone"
    if tensors[0].dtype not in _TYPES or any(x.dtype != tensors[0].dtype for x in tensors):
        return "it takes float32 or float64, not a mixture"
    return None if _is_built() else _NOT_BUILT


def _check(queries: Tensor, inputs: Tensor, weights: tuple[Tensor, ...], num_heads: int) -> None:
    """The kernel reads memory by these shapes."""
    batch, _, dim = queries.shape
    if inputs.ndim != 3 or inputs.shape[0] != batch or inputs.shape[2] != dim or not inputs.shape[1]:
        raise InputError(f"`inputs` (of shape {list(inputs.shape)}) must be [{batch}, M, {dim}], M at least 1")
    if any(weight.shape != (dim, dim) for weight in weights):
        raise InputError(f"the weights (of shapes {[list(x.shape) for x in weights]}) must be [{dim}, {dim}]")
    if num_heads < 1 or dim < 1 or dim % num_heads:
        raise InputError(f"`num_heads` (={num_heads}) must divide the embedding dimension (={dim})")


def _call(function: str, num_heads: int, read: list[Tensor], written: list[Tensor]) -> None:
    kernel = library.load()
    if kernel is None:  # a saved program has come to a machine without the library
        raise InputError(f"the attention kernel cannot be used: {_NOT_BUILT}")
    queries, inputs, *_ = read = [x.contiguous() for x in read]
    shape = (ctypes.c_int64 * 5)(*queries.shape[:2], *inputs.shape[1:], num_heads)
    addresses = [ctypes.c_void_p(x.data_ptr()) for x in (*read, *written)]
    getattr(kernel, f"{function}_{_TYPES[queries.dtype]}")(shape, *addresses, ctypes.c_int(torch.get_num_threads()))


@torch.library.custom_op("torchrec_mtl::small_attention", mutates_args=(), device_types="cpu")
def _forward(
    queries: Tensor, inputs: Tensor, query_weight: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int
) -> Tensor:
    weights = (query_weight, key_weight, value_weight)
    _check(queries, inputs, weights, num_heads)
    output = queries.new_empty(queries.shape)
    _call("forward", num_heads, [queries, inputs, *weights], [output])
    return output


@_forward.register_fake
def _(
    queries: Tensor, inputs: Tensor, query_weight: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int
) -> Tensor:
    return queries.new_empty(queries.shape)


@torch.library.custom_op("torchrec_mtl::small_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    queries: Tensor,
    inputs: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    upstream: Tensor,
    num_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    weights = (query_weight, key_weight, value_weight)
    shapes = (queries.shape, inputs.shape, (3, *query_weight.shape))
    d_queries, d_inputs, d_weights = (queries.new_empty(shape) for shape in shapes)
    _call("backward", num_heads, [queries, inputs, *weights, upstream], [d_queries, d_inputs, d_weights])
    return d_queries, d_inputs, d_weights


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
    shapes = (queries.shape, inputs.shape, (3, *query_weight.shape))
    d_queries, d_inputs, d_weights = (queries.new_empty(shape) for shape in shapes)
    return d_queries, d_inputs, d_weights


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, upstream):  # type: ignore[no-untyped-def]
    d_queries, d_inputs, d_weights = _backward(*ctx.saved_tensors, upstream, ctx.num_heads)
    return d_queries, d_inputs, *d_weights.unbind(), None


_forward.register_autograd(_gradients, setup_context=_save)


def small_attention(
    queries: Tensor, inputs: Tensor, query_weight: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int = 1
) -> Tensor:
    """`torchrec_mtl.ops.attention` by the kernel; the arguments are the same. It can be differentiated once.

    The same bits for any number of threads (`torch.set_num_threads`). Under autocast, too, it computes in the type
    of its arguments.

    Raises:
        InputError: if the tensors are not on the CPU, or not all float32 or all float64; if the kernel is not built;
            or if a shape does not fit.
    """
    reason = why_not(queries, inputs, query_weight, key_weight, value_weight)
    if reason is not None:
        raise InputError(f"the attention kernel cannot be used: {reason}")
    scaled = query_weight / (query_weight.shape[0] // num_heads) ** 0.5
    return _forward(queries, inputs, scaled, key_weight, value_weight, num_heads)


__all__ = ["small_attention", "why_not"]
