"""The backward kernel: the gradients of a whole stack in one launch.

The forward kernel keeps X_hat, 1 / deviation and the softmaxes' log-sums; this one recomputes scores and attention.
With A the attention, g the gradient of X (`forward` has the equations) and G = g M_j^T for each head:

    dM_j += (A H)^T g
    dS    = A * (G H^T - rowsum(A * (G H^T)))           for scores S = z P_j H^T + log count
    dz   += rowsum(dS * (P_j H^T)),  dP_j += z dS^T H,  dH += A^T G + (z dS)^T P_j

The adapters' gradients have the same form with z = 1. A program owns chunks of samples, as in the forward kernel. It
computes the adapters first (`adapter_gradients`, `adapter_products`), then the layers from last to first, each layer
for all its samples, so that dM of one layer can stay in registers. No two programs write to the same address. Every
program writes its weight gradients to a part of its own, and the parts are summed after the kernel, so results have
the same bits every time.
"""

import triton
import triton.language as tl

from torchrec_mtl.ops.inducing_attention.triton.backward_adapters import adapter_gradients, adapter_products
from torchrec_mtl.ops.inducing_attention.triton.backward_attention import attention_gradients, softmax_slopes
from torchrec_mtl.ops.inducing_attention.triton.backward_rows import collapse, layer_rows
from torchrec_mtl.ops.inducing_attention.triton.tiles import add_vector, load_vector, residual_of


@triton.jit
def clear(base, count, BLOCK: tl.constexpr):
    for start in tl.range(0, count, BLOCK):
        places = start + tl.arange(0, BLOCK)
        tl.store(base + places, tl.zeros([BLOCK], tl.float32), places < count)


@triton.jit
def layer_gradients(
    depth, num_samples,
    upstream, inputs, selection, folded_keys, folded_values, points, norm_weight, norm_bias, folded_indicators,
    order, active, normalised, rstd, log_sum, contexts, context_log_sum,
    d_inputs, d_selection, d_folded_keys, d_folded_values, d_points, d_norm_weight, d_norm_bias, d_folded_indicators,
    d_contexts, d_y, d_rows, slopes,
    FIRST_RESIDUAL: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr, VALUES_IN_REGISTERS: tl.constexpr,
    F: tl.constexpr, K: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, LAYERS: tl.constexpr, TASKS: tl.constexpr,
    SAMPLES: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One layer for all the program's samples; pointers to weights and their gradients already point to this layer."""
    QUERIES: tl.constexpr = TASKS * HEADS
    zero, square = tl.full((), 0, tl.int64), tl.arange(0, BLOCK_D)
    adds_query, adds_input = residual_of(depth, FIRST_RESIDUAL, RESIDUAL)
    weight, bias = load_vector(norm_weight, True, 0.0, D, BLOCK_D), load_vector(norm_bias, True, 0.0, D, BLOCK_D)
    former_weight = load_vector(norm_weight - D, depth > 0, 1.0, D, BLOCK_D)
    former_bias = load_vector(norm_bias - D, depth > 0, 0.0, D, BLOCK_D)
    d_weight, d_bias = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    d_values = tl.zeros([BLOCK_HEADS, BLOCK_D, BLOCK_D] if VALUES_IN_REGISTERS else [1, 1, 1], tl.float32)
    for chunk in tl.range(tl.program_id(0), tl.cdiv(num_samples, SAMPLES), tl.num_programs(0), disable_licm=True):
        for member in tl.range(0, min(SAMPLES, num_samples - chunk * SAMPLES), disable_licm=True):
            sample = zero + chunk * SAMPLES + member
            at = sample * LAYERS + depth
            num_active = tl.load(active + sample)
            num_rows = tl.minimum(num_active + 1, K)
            z, own_order, own_d_z = selection + sample * K, order + sample * K, d_selection + sample * K
            own_d_y, own_hat = d_y + sample * K * D, normalised + at * K * D
            if depth == LAYERS - 1:
                clear(own_d_z, K, 64)
                if TASKS == 0:
                    collapse(
                        upstream + sample * K * D, own_order, num_rows, num_active, own_d_y, K, D, BLOCK_Q, BLOCK_D
                    )
                tl.debug_barrier()
            d_weight, d_bias = layer_rows(
                depth, own_hat, rstd + at * K, num_rows, num_active, weight, bias, z, own_order, points,
                folded_indicators, contexts + at * QUERIES * D, d_contexts + at * QUERIES * D,
                context_log_sum + at * QUERIES, own_d_y, d_rows, own_d_z, d_folded_indicators, d_points,
                d_weight, d_bias, adds_query, GATED, LAYERS - 1, TASKS, HEADS, K, D, BLOCK_Q, BLOCK_D, PRECISION,
            )  # fmt: skip
            tl.debug_barrier()
            if depth > 0:
                base, num_keys, common = own_hat - K * D, num_rows, num_active
            else:
                base, num_keys, common = inputs + sample * F * D, num_rows * 0 + F, num_active * 0 - 1
            own_log_sum = log_sum + at * HEADS * K
            if num_keys > BLOCK_K:
                softmax_slopes(
                    base, num_keys, num_rows, num_active, common, former_weight, former_bias, z, own_order,
                    folded_keys, folded_values, own_log_sum, d_rows, slopes,
                    HEADS, K, D, BLOCK_Q, BLOCK_K, BLOCK_D, PRECISION,
                )  # fmt: skip
                tl.debug_barrier()
            d_values = attention_gradients(
                base, num_keys, num_rows, num_active, common, former_weight, former_bias, z, own_order,
                folded_keys, folded_values, own_log_sum, slopes, d_rows, own_d_z, own_d_y, d_inputs + sample * F * D,
                d_folded_keys, d_folded_values, d_values, depth, adds_input, GATED, VALUES_IN_REGISTERS,
                HEADS, K, D, BLOCK_Q, BLOCK_K, BLOCK_D, PRECISION,
            )  # fmt: skip
    add_vector(d_norm_weight, d_weight, D, BLOCK_D)
    add_vector(d_norm_bias, d_bias, D, BLOCK_D)
    if VALUES_IN_REGISTERS:
        heads = tl.arange(0, BLOCK_HEADS)[:, None, None]
        offsets = (heads * D + square[None, :, None]) * D + square[None, None, :]
        mask = (heads < HEADS) & (square < D)[None, :, None] & (square < D)[None, None, :]
        tl.store(d_folded_values + offsets, d_values, mask)


@triton.jit(do_not_specialize=["num_samples"])  # another batch need not be compiled
def backward_kernel(
    upstream,  # [B, T, D]; without adapters [B, K, D]
    inputs, selection, folded_keys, folded_values, points, norm_weight, norm_bias,  # as in the forward
    folded_indicators, adapter_values, adapter_norm_weight,
    order, active, normalised, rstd, log_sum, contexts, context_log_sum, adapter_normalised, adapter_rstd,  # as kept
    d_inputs,  # [B, F, D]
    d_selection,  # [B, K] float32
    d_folded_keys,  # [L, m, K, D]; from here on the programs' parts of the weight gradients, float32, PARTIAL apart
    d_folded_values,  # [L, m, D, D]
    d_points,  # [L, K, D]
    d_norm_weight,  # [L, D]
    d_norm_bias,
    d_folded_indicators,  # [L, T, m, D]
    d_adapter_values,  # [L, T, m, D, D]
    d_adapter_norm_weight,  # [L, T, D]
    d_adapter_norm_bias,
    d_adapted,  # dF [B, L, T, D]; this and what follows is working space
    d_contexts,  # dC [B, L, T, m, D]
    d_y,  # dY [B, K, D] float32
    d_rows,  # g [programs, K, D] float32
    slopes,  # [programs, m, K] float32
    num_samples,
    F: tl.constexpr, K: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, LAYERS: tl.constexpr, TASKS: tl.constexpr,
    FIRST_RESIDUAL: tl.constexpr, RESIDUAL: tl.constexpr, GATED: tl.constexpr, PARTIAL: tl.constexpr,
    VALUES_IN_REGISTERS: tl.constexpr, SAMPLES: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_HEADS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    QUERIES: tl.constexpr = TASKS * HEADS
    program, zero = tl.program_id(0), tl.full((), 0, tl.int64)
    part = (zero + program) * PARTIAL
    num_chunks = tl.cdiv(num_samples, SAMPLES)
    clear(d_folded_keys + part, PARTIAL, 1024)  # a program's gradients are contiguous, dP first
    own_d_rows, own_slopes = d_rows + (zero + program) * K * D, slopes + (zero + program) * HEADS * K
    tl.debug_barrier()
    if TASKS > 0:
        for chunk in tl.range(program, num_chunks, tl.num_programs(0)):
            members = tl.arange(0, 16)
            samples = zero + chunk * SAMPLES + members
            adapter_gradients(
                upstream, samples, (members < SAMPLES) & (samples < num_samples), adapter_normalised, adapter_rstd,
                adapter_norm_weight, d_adapter_norm_weight + part, d_adapter_norm_bias + part, d_adapted,
                LAYERS, TASKS, D, BLOCK_D,
            )  # fmt: skip
            tl.debug_barrier()
        adapter_products(
            num_samples, contexts, adapter_values, d_adapted, d_contexts, d_adapter_values + part,
            QUERIES, HEADS, LAYERS, SAMPLES, D, BLOCK_D, PRECISION,
        )  # fmt: skip
        tl.debug_barrier()
    for back in tl.range(0, LAYERS, disable_licm=True):
        depth = LAYERS - 1 - back
        layer_gradients(
            depth, num_samples, upstream, inputs, selection, folded_keys + depth * HEADS * K * D,
            folded_values + depth * HEADS * D * D, points + depth * K * D, norm_weight + depth * D,
            norm_bias + depth * D, folded_indicators + depth * QUERIES * D,
            order, active, normalised, rstd, log_sum, contexts, context_log_sum, d_inputs, d_selection,
            d_folded_keys + part + depth * HEADS * K * D, d_folded_values + part + depth * HEADS * D * D,
            d_points + part + depth * K * D, d_norm_weight + part + depth * D, d_norm_bias + part + depth * D,
            d_folded_indicators + part + depth * QUERIES * D, d_contexts, d_y, own_d_rows, own_slopes,
            FIRST_RESIDUAL, RESIDUAL, GATED, VALUES_IN_REGISTERS, F, K, D, HEADS, LAYERS, TASKS, SAMPLES,
            BLOCK_Q, BLOCK_K, BLOCK_D, BLOCK_HEADS, PRECISION,
        )  # fmt: skip
