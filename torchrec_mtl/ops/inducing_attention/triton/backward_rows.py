"""The rows' part of the backward kernel, TAFE eq. (20): from dY to g; `backward` has the equations."""

import triton
import triton.language as tl

from torchrec_mtl.ops.inducing_attention.triton.backward_adapters import indicator_gradients
from torchrec_mtl.ops.inducing_attention.triton.tiles import add_rows, load_rows, normalise_gradient, tile


@triton.jit
def collapse(
    upstream, order, num_rows, num_active, d_y,
    K: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes dY of the kept rows without adapters; the common row's is the sum over the points that it stands for."""
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
def row_gradients(
    gradient, rows, valid, active, point, z, hat, weight, rstd, points, d_points, d_rows, adds_query,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Eq. (20) backwards for a tile of rows Y: writes g, the gradient of X; returns the residual's share of dz."""
    gradient = normalise_gradient(gradient, hat, rstd, weight, D)
    offsets, mask = tile(rows, valid, D, BLOCK_D)
    tl.store(d_rows + offsets, gradient, mask)
    d_z = tl.zeros([rows.shape[0]], tl.float32)
    if adds_query:
        d_z += tl.sum(gradient * load_rows(points, point, active, D, BLOCK_D), 1)
        add_rows(d_points, point, active, gradient * z[:, None], D, BLOCK_D)
    return d_z


@triton.jit
def layer_rows(
    depth, hat_base, rstd, num_rows, num_active, weight, bias, selection, order, points,
    folded_indicators, contexts, d_contexts, context_log_sum, d_y, d_rows, d_selection, d_indicators, d_points,
    d_weight, d_bias, adds_query,
    GATED: tl.constexpr, LAST: tl.constexpr, TASKS: tl.constexpr, HEADS: tl.constexpr,
    K: tl.constexpr, D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Turns dY, from the next layer and the adapters, into g by tiles; returns the sums of LayerNorm's gradients."""
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
