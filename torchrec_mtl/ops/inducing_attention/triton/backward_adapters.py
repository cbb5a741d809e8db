"""The task adapters' part of the backward kernel, TAFE eq. (21)-(22); `backward` has the equations."""

import triton
import triton.language as tl

from torchrec_mtl.ops.inducing_attention.triton.tiles import (
    add_rows,
    add_vector,
    dot,
    load_rows,
    load_vector,
    log_count,
    normalise_gradient,
    tile,
)


@triton.jit
def adapter_gradients(
    upstream, samples, valid, normalised, rstd, norm_weight, d_norm_weight, d_norm_bias, d_adapted,
    LAYERS: tl.constexpr, TASKS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Eq. (22) backwards for a chunk of samples: writes dF^l, the gradient of every layer's attention output."""
    for task in tl.range(0, TASKS):
        gradient = load_rows(upstream, samples * TASKS + task, valid, D, BLOCK_D).to(tl.float32)
        for back in tl.range(0, LAYERS, disable_licm=True):
            one = (LAYERS - 1 - back) * TASKS + task
            rows = samples * LAYERS * TASKS + one
            hat = load_rows(normalised, rows, valid, D, BLOCK_D)
            add_vector(d_norm_weight + one * D, tl.sum(gradient * hat, 0), D, BLOCK_D)
            add_vector(d_norm_bias + one * D, tl.sum(gradient, 0), D, BLOCK_D)
            weight = load_vector(norm_weight + one * D, True, 0.0, D, BLOCK_D)
            gradient = normalise_gradient(gradient, hat, tl.load(rstd + rows, valid, other=0.0), weight, D)
            offsets, mask = tile(rows, valid, D, BLOCK_D)
            tl.store(d_adapted + offsets, gradient.to(d_adapted.dtype.element_ty), mask)


@triton.jit
def adapter_products(
    num_samples, contexts, folded_values, d_adapted, d_contexts, d_values,
    QUERIES: tl.constexpr, HEADS: tl.constexpr, LAYERS: tl.constexpr, SAMPLES: tl.constexpr, D: tl.constexpr,
    BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The product with M_ij, eq. (21), backwards for all samples of the program: writes dC and the program's dM_ij."""
    square, members = tl.arange(0, BLOCK_D), tl.arange(0, 16)
    for product in tl.range(0, LAYERS * QUERIES):
        value = load_rows(folded_values + product * D * D, square, square < D, D, BLOCK_D)
        d_value = tl.zeros([BLOCK_D, BLOCK_D], tl.float32)
        for chunk in tl.range(tl.program_id(0), tl.cdiv(num_samples, SAMPLES), tl.num_programs(0), disable_licm=True):
            samples = tl.full((), 0, tl.int64) + chunk * SAMPLES + members
            valid = (members < SAMPLES) & (samples < num_samples)
            rows = samples * LAYERS * QUERIES + product
            context = load_rows(contexts, rows, valid, D, BLOCK_D)
            gradient = load_rows(d_adapted, samples * LAYERS * (QUERIES // HEADS) + product // HEADS, valid, D, BLOCK_D)
            d_value = dot(tl.trans(context), gradient, d_value, PRECISION)
            offsets, mask = tile(rows, valid, D, BLOCK_D)
            d_context = dot(gradient, tl.trans(value), None, PRECISION)
            tl.store(d_contexts + offsets, d_context.to(d_contexts.dtype.element_ty), mask)
        offsets, mask = tile(square, square < D, D, BLOCK_D)
        tl.store(d_values + product * D * D + offsets, d_value, mask)


@triton.jit
def indicator_gradients(
    y, rows, valid, num_active, gradient, folded_indicators, contexts, d_contexts, log_sum, d_indicators,
    QUERIES: tl.constexpr, K: tl.constexpr, D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Eq. (21) backwards for a tile of one sample's rows Y: returns the gradient with the adapters' share added."""
    for start in tl.range(0, QUERIES, BLOCK_T, disable_licm=True):
        queries = start + tl.arange(0, BLOCK_T)
        known = queries < QUERIES
        indicator = load_rows(folded_indicators, queries, known, D, BLOCK_D)
        d_context = load_rows(d_contexts, queries, known, D, BLOCK_D)
        context = load_rows(contexts, queries, known, D, BLOCK_D)
        slope = tl.sum(d_context.to(tl.float32) * context.to(tl.float32), 1)
        scores = dot(indicator, tl.trans(y), None, PRECISION) + log_count(rows, num_active, K)[None, :]
        scores -= tl.load(log_sum + queries, known, other=0.0)[:, None]
        attention = tl.exp(tl.where(known[:, None] & valid[None, :], scores, float("-inf")))
        d_scores = attention * (dot(d_context, tl.trans(y), None, PRECISION) - slope[:, None])
        gradient = dot(tl.trans(attention.to(y.dtype)), d_context, gradient, PRECISION)
        gradient = dot(tl.trans(d_scores.to(y.dtype)), indicator, gradient, PRECISION)
        add_rows(d_indicators, queries, known, dot(d_scores.to(y.dtype), y, None, PRECISION), D, BLOCK_D)
    return gradient
