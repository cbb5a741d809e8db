"""The forward kernel: all layers and task adapters of a sample in one launch, TAFE eq. (17)-(22).

With the weights folded once per step (in `operators`), P_j = I_j Wk_j^T / sqrt(d_h) and M_j = Wv_j Wo_j:

    eq. (17)-(18)  A_j = softmax(z P_j H^T + log count)                                   `attend`
    eq. (19)       X = sum_j (A_j H) M_j                                                  `layer`
    eq. (20)       X_hat = normalise(X + residual), Y = X_hat * weight + bias             `layer`; next: H = Y
    eq. (21)       C_ij = softmax(a_ij Y^T + log count) Y, F_i = sum_j C_ij M_ij          `adapter_contexts`, `adapters`
    eq. (22)       T_i = LayerNorm(T_i + F_i)                                             `adapters`

A program takes chunks of samples. It computes a sample's layers one after the other; their rows pass through memory
that the program has just written and so finds in its cache. The products with M_ij have one row a sample, so they are
computed for a whole chunk at once.
"""

import triton
import triton.language as tl

from torchrec_mtl.ops.inducing_attention.triton.forward_adapters import adapter_contexts, adapters
from torchrec_mtl.ops.inducing_attention.triton.tiles import (
    attend,
    dot,
    load_keys,
    load_rows,
    load_vector,
    normalise,
    residual_of,
    tile,
)


@triton.jit
def plan(selection, order, K: tl.constexpr, BLOCK_POINTS: tl.constexpr, DENSE: tl.constexpr):
    """Writes ``order``, with the selected points before the others; returns the number of selected points."""
    points = tl.arange(0, BLOCK_POINTS)
    inside = points < K
    if DENSE:
        tl.store(order + points, points, inside)
        return K
    z = tl.load(selection + points, inside, other=0.0)
    active, others = ((z != 0) & inside).to(tl.int32), ((z == 0) & inside).to(tl.int32)
    num_active = tl.sum(active, 0)
    place = tl.where(active == 1, tl.cumsum(active, 0), num_active + tl.cumsum(others, 0)) - 1
    tl.store(order + place, points, inside)
    return num_active


@triton.jit
def layer(
    base, num_keys, num_rows, num_active, common, former_weight, former_bias, selection, order,
    folded_keys, folded_values, points, normalised, rstd, log_sum, adds_query, adds_input,
    EPS: tl.constexpr, HEADS: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One layer of one sample, eq. (17)-(20): writes ``X_hat``, LayerNorm's 1 / deviation and the log-sums."""
    square = tl.arange(0, BLOCK_D)
    for start in tl.range(0, num_rows, BLOCK_Q):
        rows = start + tl.arange(0, BLOCK_Q)
        valid, active = rows < num_rows, rows < num_active
        point = tl.load(order + rows, active, other=0)
        z = tl.load(selection + point, active, other=0.0)
        x = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
        if adds_query:
            x += load_rows(points, point, active, D, BLOCK_D) * z[:, None]
        if adds_input:
            x += load_keys(base, rows, valid, former_weight, former_bias, D, BLOCK_D).to(tl.float32)
        for head in tl.range(0, HEADS, disable_licm=True):
            query = load_rows(folded_keys + head * K * D, point, active, D, BLOCK_D)
            context, log_total = attend(
                query, z, base, num_keys, common, former_weight, former_bias, K, D, BLOCK_K, BLOCK_D, PRECISION
            )  # fmt: skip
            tl.store(log_sum + head * K + rows, log_total, valid)
            value = load_rows(folded_values + head * D * D, square, square < D, D, BLOCK_D)
            x = dot(context.to(value.dtype), value, x, PRECISION)
        x, deviation = normalise(x, EPS, D)
        offsets, mask = tile(rows, valid, D, BLOCK_D)
        tl.store(normalised + offsets, x.to(normalised.dtype.element_ty), mask)
        tl.store(rstd + rows, deviation, valid)


@triton.jit
def expand(
    normalised, num_active, order, weight, bias, output,
    K: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes the output without adapters, ``Y [K, D]``: the common row goes to every point that it stands for."""
    for start in tl.range(0, K, BLOCK_Q):
        rows = start + tl.arange(0, BLOCK_Q)
        valid = rows < K
        y = load_keys(normalised, tl.minimum(rows, num_active), valid, weight, bias, D, BLOCK_D)
        offsets, mask = tile(tl.load(order + rows, valid, other=0), valid, D, BLOCK_D)
        tl.store(output + offsets, y, mask)


@triton.jit(do_not_specialize=["num_samples"])  # another batch need not be compiled
def forward_kernel(
    inputs,  # [B, F, D]
    selection,  # [B, K] float32
    folded_keys,  # P [L, m, K, D]
    folded_values,  # M [L, m, D, D]
    points,  # I [L, K, D] float32
    norm_weight,  # [L, D] float32
    norm_bias,
    folded_indicators,  # a [L, T, m, D]
    adapter_values,  # [L, T, m, D, D]
    adapter_norm_weight,  # [L, T, D] float32
    adapter_norm_bias,
    output,  # [B, T, D]; without adapters [B, K, D]
    order,  # [S, K] int32; this and what follows is kept for the backward kernel, by slot
    active,  # n [S] int32
    normalised,  # X_hat [S, L, K, D]
    rstd,  # [S, L, K] float32
    log_sum,  # [S, L, m, K] float32
    contexts,  # C [S, L, T, m, D]
    context_log_sum,  # [S, L, T, m] float32
    adapter_normalised,  # [S, L, T, D] float32
    adapter_rstd,  # [S, L, T] float32
    num_samples,
    F: tl.constexpr, K: tl.constexpr, D: tl.constexpr, HEADS: tl.constexpr, LAYERS: tl.constexpr, TASKS: tl.constexpr,
    FIRST_RESIDUAL: tl.constexpr, RESIDUAL: tl.constexpr, DENSE: tl.constexpr, KEEP: tl.constexpr, EPS: tl.constexpr,
    SAMPLES: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_POINTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """With KEEP a slot is a sample; without it, a program reuses its own slots for every chunk."""
    QUERIES: tl.constexpr = TASKS * HEADS
    zero = tl.full((), 0, tl.int64)
    for chunk in tl.range(tl.program_id(0), tl.cdiv(num_samples, SAMPLES), tl.num_programs(0)):
        first = zero + chunk * SAMPLES
        first_slot = first if KEEP else zero + tl.program_id(0) * SAMPLES
        for member in tl.range(0, min(SAMPLES, num_samples - chunk * SAMPLES)):
            sample, slot = first + member, first_slot + member
            z, own_order = selection + sample * K, order + slot * K
            num_active = plan(z, own_order, K, BLOCK_POINTS, DENSE)
            num_rows = tl.minimum(num_active + 1, K)
            tl.store(active + slot, num_active)
            tl.debug_barrier()
            weight, bias = tl.full([BLOCK_D], 1.0, tl.float32), tl.zeros([BLOCK_D], tl.float32)
            base, num_keys, common = inputs + sample * F * D, tl.full((), F, tl.int32), tl.full((), -1, tl.int32)
            for depth in tl.range(0, LAYERS, disable_licm=True):
                at = slot * LAYERS + depth
                adds_query, adds_input = residual_of(depth, FIRST_RESIDUAL, RESIDUAL)
                layer(
                    base, num_keys, num_rows, num_active, common, weight, bias, z, own_order,
                    folded_keys + depth * HEADS * K * D, folded_values + depth * HEADS * D * D, points + depth * K * D,
                    normalised + at * K * D, rstd + at * K, log_sum + at * HEADS * K, adds_query, adds_input,
                    EPS, HEADS, K, D, BLOCK_Q, BLOCK_K, BLOCK_D, PRECISION,
                )  # fmt: skip
                tl.debug_barrier()
                weight = load_vector(norm_weight + depth * D, True, 0.0, D, BLOCK_D)
                bias = load_vector(norm_bias + depth * D, True, 0.0, D, BLOCK_D)
                base, num_keys, common = normalised + at * K * D, num_rows, num_active
                if TASKS > 0:
                    adapter_contexts(
                        base, num_rows, num_active, weight, bias, folded_indicators + depth * QUERIES * D,
                        contexts + at * QUERIES * D, context_log_sum + at * QUERIES,
                        QUERIES, K, D, 16, BLOCK_K, BLOCK_D, PRECISION,
                    )  # fmt: skip
            if TASKS == 0:
                expand(base, num_active, own_order, weight, bias, output + sample * K * D, K, D, BLOCK_Q, BLOCK_D)
        if TASKS > 0:
            tl.debug_barrier()
            members = tl.arange(0, 16)
            valid = (members < SAMPLES) & (first + members < num_samples)
            adapters(
                first_slot + members, first + members, valid, contexts, adapter_values, adapter_norm_weight,
                adapter_norm_bias, adapter_normalised, adapter_rstd, output,
                EPS, LAYERS, TASKS, HEADS, D, BLOCK_D, PRECISION,
            )  # fmt: skip
        tl.debug_barrier()
