"""The task adapters' part of the forward kernel, TAFE eq. (21)-(22); `forward` has the equations."""

import triton
import triton.language as tl

from torchrec_mtl.ops.inducing_attention.triton.tiles import attend, dot, load_rows, load_vector, normalise, tile


@triton.jit
def adapter_contexts(
    base, num_rows, num_active, weight, bias, folded_indicators, contexts, log_sum,
    QUERIES: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes what every task's heads read from one sample's layer, ``C [T m, D]`` of eq. (21), and the log-sums."""
    for start in tl.range(0, QUERIES, BLOCK_T):
        queries = start + tl.arange(0, BLOCK_T)
        valid = queries < QUERIES
        indicator = load_rows(folded_indicators, queries, valid, D, BLOCK_D)
        one = tl.full([BLOCK_T], 1.0, tl.float32)
        context, log_total = attend(
            indicator, one, base, num_rows, num_active, weight, bias, K, D, BLOCK_K, BLOCK_D, PRECISION
        )
        offsets, mask = tile(queries, valid, D, BLOCK_D)
        tl.store(contexts + offsets, context.to(contexts.dtype.element_ty), mask)
        tl.store(log_sum + queries, log_total, valid)


@triton.jit
def adapters(
    slots, samples, valid, contexts, folded_values, norm_weight, norm_bias, normalised, rstd, output,
    EPS: tl.constexpr, LAYERS: tl.constexpr, TASKS: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The adapters of a chunk of samples, eq. (21)-(22): writes ``T^L`` and what the backward kernel needs."""
    square = tl.arange(0, BLOCK_D)
    for task in tl.range(0, TASKS):
        state = tl.zeros([slots.shape[0], BLOCK_D], tl.float32)
        for depth in tl.range(0, LAYERS, disable_licm=True):
            one = depth * TASKS + task
            for head in tl.range(0, HEADS, disable_licm=True):
                context = load_rows(contexts, (slots * LAYERS * TASKS + one) * HEADS + head, valid, D, BLOCK_D)
                value = load_rows(folded_values + (one * HEADS + head) * D * D, square, square < D, D, BLOCK_D)
                state = dot(context, value, state, PRECISION)
            state, deviation = normalise(state, EPS, D)
            rows = slots * LAYERS * TASKS + one
            offsets, mask = tile(rows, valid, D, BLOCK_D)
            tl.store(normalised + offsets, state, mask)
            tl.store(rstd + rows, deviation, valid)
            weight = load_vector(norm_weight + one * D, True, 0.0, D, BLOCK_D)
            bias = load_vector(norm_bias + one * D, True, 0.0, D, BLOCK_D)
            state = state * weight[None, :] + bias[None, :]
        offsets, mask = tile(samples * TASKS + task, valid, D, BLOCK_D)
        tl.store(output + offsets, state.to(output.dtype.element_ty), mask)
