"""The backward kernel: the gradients of a whole stack in one launch.

The forward kept X_hat, 1 / deviation and the softmaxes' log-sums; scores and attention are computed again. With A the
attention, g the gradient of X (`triton_forward` has the equations) and per head G = g M_j^T:

    dM_j += (A H)^T g
    dS    = A * (G H^T - rowsum(A * (G H^T)))           for scores S = z P_j H^T + log count
    dz   += rowsum(dS * (P_j H^T)),  dP_j += z dS^T H,  dH += A^T G + (z dS)^T P_j

The adapters' gradients have the same form with z = 1. A program owns chunks of samples, as in the forward. It goes
through the adapters first (`adapter_gradients`, `adapter_products`), then through the layers, the last one first, each
for all its samples: so dM of one layer can stay in registers. No two programs write one address. Weight gradients
go to the program's own part and are summed after the kernel: the same bits every time.
"""

import triton
import triton.language as tl

from torchrec_mtl.ops.inducing_attention.triton_backward_adapters import (
    adapter_gradients,
    adapter_products,
    indicator_gradients,
)
from torchrec_mtl.ops.inducing_attention.triton_backward_layer import (
    attention_gradients,
    row_gradients,
    softmax_slopes,
)
from torchrec_mtl.ops.inducing_attention.triton_tiles import (
    add_vector,
    load_rows,
    load_vector,
    residual_of,
    tile,
)


@triton.jit
def collapse(
    upstream, order, num_rows, num_active, d_y,
    K: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Without adapters: dY of the kept rows; the common row's is the sum over the points that it stands for."""
    common = tl.zeros([BLOCK_D], tl.float32)
    for start in tl.range(0, K, BLOCK_Q):
        rows = start + tl.arange(0, BLOCK_Q)
        point = tl.load(order + rows, rows < K, other=0)
        gradient = load_rows(upstream, point, rows < K, D, BLOCK_D).to(tl.float32)
        offsets, mask = tile(rows, rows < num_active, D, BLOCK_D)
        tl.store(d_y + offsets, gradient, mask)
        common += tl.sum(tl.where((rows >= num_active)[:, None], gradient, 0.0), 0)
    columns = tl.arange(0, BLOCK_D)
    tl.store(d_y + num_active * D + columns, common, (columns < D) & (num_active < num_rows))


@triton.jit
def clear(base, count, BLOCK: tl.constexpr):
    for start in tl.range(0, count, BLOCK):
        places = start + tl.arange(0, BLOCK)
        tl.store(base + places, tl.zeros([BLOCK], tl.float32), places < count)


@triton.jit
def layer_rows(
    depth, hat_base, rstd, num_rows, num_active, weight, bias, selection, order, points,
    folded_indicators, contexts, d_contexts, context_log_sum, d_y, d_rows, d_selection, d_indicators, d_points,
    d_weight, d_bias, adds_query,
    GATED: tl.constexpr, LAST: tl.constexpr, TASKS: tl.constexpr, HEADS: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """From dY by the next layer and the adapters to g, tile by tile; adds to LayerNorm's gradients, returned."""
    for start in tl.range(0, num_rows, BLOCK_Q, disable_licm=True):
        rows = start + tl.arange(0, BLOCK_Q)
        valid, active = rows < num_rows, rows < num_active
        point = tl.load(order + rows, active, other=0)
        z = tl.load(selection + point, active, other=0.0)
        stored = load_rows(hat_base, rows, valid, D, BLOCK_D)
        hat = stored.to(tl.float32)
        if (depth < LAST) | (TASKS == 0):
            gradient = load_rows(d_y, rows, valid, D, BLOCK_D)
        else:
            gradient = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
        if TASKS > 0:
            y = (hat * weight[None, :] + bias[None, :]).to(stored.dtype)
            gradient = indicator_gradients(
                y, rows, valid, num_active, gradient, folded_indicators, contexts, d_contexts, context_log_sum,
                d_indicators, TASKS * HEADS, K, D, 16, BLOCK_D, PRECISION,
            )  # fmt: skip
        d_weight += tl.sum(gradient * hat, 0)
        d_bias += tl.sum(gradient, 0)
        deviation = tl.load(rstd + rows, valid, other=0.0)
        d_z = row_gradients(
            gradient, rows, valid, active, point, z, hat, weight, deviation, points, d_points, d_rows,
            adds_query, D, BLOCK_D,
        )  # fmt: skip
        if adds_query:
            if GATED:
                active = active & (z != 0)
            tl.store(d_selection + point, tl.load(d_selection + point, active, other=0.0) + d_z, active)
    return d_weight, d_bias


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
    """One layer of all the program's samples; pointers to weights and their gradients are already the layer's."""
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


@triton.jit
def backward_kernel(
    upstream,  # [B, T, D]; without adapters [B, K, D]
    inputs, selection, folded_keys, folded_values, points, norm_weight, norm_bias,  # as in the forward
    folded_indicators, adapter_values, adapter_norm_weight,
    order, active, normalised, rstd, log_sum, contexts, context_log_sum, adapter_normalised, adapter_rstd,  # kept
    d_inputs,  # [B, F, D]
    d_selection,  # [B, K] float32
    d_folded_keys,  # the program's parts of the weight gradients, float32, PARTIAL apart: [L, m, K, D]
    d_folded_values,  # [L, m, D, D]
    d_points,  # [L, K, D]
    d_norm_weight,  # [L, D]
    d_norm_bias,
    d_folded_indicators,  # [L, T, m, D]
    d_adapter_values,  # [L, T, m, D, D]
    d_adapter_norm_weight,  # [L, T, D]
    d_adapter_norm_bias,
    d_adapted,  # working space: dF [B, L, T, D]
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
    clear(d_folded_keys + part, PARTIAL, 1024)  # the parts lie one after the other, dP first
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
