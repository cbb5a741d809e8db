"""Attention between small sets on the CPU, float32 and float64: a C++ kernel with one sample in each SIMD lane.

Batched products of matrices as small as 34 x 8 spend their time on calls, padding and memory traffic. Here a sample
stays in the core's own cache. The kernel is optional: ``python -m torchrec_mtl.ops.build`` builds it.
"""

import functools

import torch
from torch import Tensor

from torchrec_mtl.ops import library
from torchrec_mtl.ops.attention import reference
from torchrec_mtl.ops.backends import differentiable_gradients


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.num_heads = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx, upstream):  # type: ignore[no-untyped-def]
    if torch.is_grad_enabled():  # create_graph=True
        defined = functools.partial(reference.attention, num_heads=ctx.num_heads)
        return *differentiable_gradients(defined, ctx.saved_tensors, upstream), None
    d_queries, d_inputs, d_weights = torch.ops.torchrec_mtl.small_attention_backward(
        *ctx.saved_tensors, upstream, ctx.num_heads
    )
    return d_queries, d_inputs, *d_weights.unbind(), None


def _like_queries(queries: Tensor, *_: Tensor | int) -> Tensor:
    return queries.new_empty(queries.shape)


def _like_gradients(queries: Tensor, inputs: Tensor, weight: Tensor, *_: Tensor | int) -> tuple[Tensor, Tensor, Tensor]:
    return queries.new_empty(queries.shape), inputs.new_empty(inputs.shape), weight.new_empty(3, *weight.shape)


if library.load():
    torch.library.register_fake("torchrec_mtl::small_attention", _like_queries)
    torch.library.register_fake("torchrec_mtl::small_attention_backward", _like_gradients)
    torch.library.register_autograd("torchrec_mtl::small_attention", _gradients, setup_context=_save)


def attention(
    queries: Tensor, inputs: Tensor, query_weight: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int = 1
) -> Tensor:
    """BPCM eq. (2)-(3); arguments as in `torchrec_mtl.ops.attention`. Second derivatives are the reference's.

    The result has the same bits for any number of threads (`torch.set_num_threads`).

    Raises:
        InputError: if the tensors are not on the CPU, or not all float32 or all float64; or if the kernel is not built.
        RuntimeError: if a shape does not fit.
    """
    library.require("attention", queries, inputs, query_weight, key_weight, value_weight)
    output: Tensor = torch.ops.torchrec_mtl.small_attention(
        queries, inputs, query_weight, key_weight, value_weight, num_heads
    )
    return output
