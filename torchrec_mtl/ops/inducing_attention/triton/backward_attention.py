"""The attention's part of the backward kernel, TAFE eq. (17)-(19); `backward` has the equations."""

import triton
import triton.language as tl

from torchrec_mtl.ops.inducing_attention.triton.tiles import add_rows, dot, load_keys, load_rows, log_count, tile


@triton.jit
def head_scores(
    query, scale, keys, key_rows, key_valid, row_valid, common, log_total, K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Returns a tile of P_j H^T and of the attention, from the log-sum of the softmax that the forward kernel kept."""
    products = dot(query, tl.trans(keys), None, PRECISION)
    scores = products * scale[:, None] - log_total[:, None] + log_count(key_rows, common, K)[None, :]
    return products, tl.exp(tl.where(row_valid[:, None] & key_valid[None, :], scores, float("-inf")))


@triton.jit
def softmax_slopes(
    base, num_keys, num_rows, num_active, common, former_weight, former_bias, selection, order,
    folded_keys, folded_values, log_sum, gradient, slopes,
    HEADS: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Writes ``rowsum(A * (G H^T))``, which dS needs from all tiles of keys where there are several."""
    square = tl.arange(0, BLOCK_D)
    for start in tl.range(0, num_rows, BLOCK_Q):
        rows = start + tl.arange(0, BLOCK_Q)
        valid, active = rows < num_rows, rows < num_active
        point = tl.load(order + rows, active, other=0)
        z = tl.load(selection + point, active, other=0.0)
        for head in tl.range(0, HEADS, disable_licm=True):
            query = load_rows(folded_keys + head * K * D, point, active, D, BLOCK_D)
            value = load_rows(folded_values + head * D * D, square, square < D, D, BLOCK_D)
            upstream = load_rows(gradient, rows, valid, D, BLOCK_D).to(query.dtype)
            d_context = dot(upstream, tl.trans(value), None, PRECISION).to(query.dtype)
            log_total = tl.load(log_sum + head * K + rows, valid, other=0.0)
            slope = tl.zeros([BLOCK_Q], tl.float32)
            for key_start in tl.range(0, num_keys, BLOCK_K):
                key_rows = key_start + tl.arange(0, BLOCK_K)
                key_valid = key_rows < num_keys
                keys = load_keys(base, key_rows, key_valid, former_weight, former_bias, D, BLOCK_D)
                _, attention = head_scores(query, z, keys, key_rows, key_valid, valid, common, log_total, K, PRECISION)
                slope += tl.sum(attention * dot(d_context, tl.trans(keys), None, PRECISION), 1)
            tl.store(slopes + head * K + rows, slope, valid)


@triton.jit
def attention_gradients(
    base, num_keys, num_rows, num_active, common, former_weight, former_bias, selection, order,
    folded_keys, folded_values, log_sum, slopes, d_rows, d_selection, d_y, d_inputs, d_folded_keys, d_folded_values,
    d_values, depth, adds_input,
    GATED: tl.constexpr, VALUES_IN_REGISTERS: tl.constexpr,
    HEADS: tl.constexpr, K: tl.constexpr, D: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Eq. (17)-(19) backwards for one sample: writes dH, adds to dz and dP_j, and returns the sum of dM_j."""
    square = tl.arange(0, BLOCK_D)
    for key_start in tl.range(0, num_keys, BLOCK_K):
        key_rows = key_start + tl.arange(0, BLOCK_K)
        key_valid = key_rows < num_keys
        keys = load_keys(base, key_rows, key_valid, former_weight, former_bias, D, BLOCK_D)
        d_key = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
        if adds_input:
            d_key += load_rows(d_rows, key_rows, key_valid, D, BLOCK_D)
        for start in tl.range(0, num_rows, BLOCK_Q, disable_licm=True):
            rows = start + tl.arange(0, BLOCK_Q)
            valid, active = rows < num_rows, rows < num_active
            point = tl.load(order + rows, active, other=0)
            z = tl.load(selection + point, active, other=0.0)
            upstream = load_rows(d_rows, rows, valid, D, BLOCK_D).to(keys.dtype)
            d_z = tl.zeros([BLOCK_Q], tl.float32)
            for head in tl.range(0, HEADS, disable_licm=True):
                query = load_rows(folded_keys + head * K * D, point, active, D, BLOCK_D)
                log_total = tl.load(log_sum + head * K + rows, valid, other=0.0)
                products, attention = head_scores(
                    query, z, keys, key_rows, key_valid, valid, common, log_total, K, PRECISION
                )
                context = dot(attention.to(keys.dtype), keys, None, PRECISION).to(keys.dtype)
                d_value = dot(tl.trans(context), upstream, None, PRECISION)
                if VALUES_IN_REGISTERS:
                    own = (tl.arange(0, d_values.shape[0]) == head)[:, None, None]
                    d_values += tl.where(own, d_value[None, :, :], 0.0)
                else:
                    add_rows(d_folded_values + head * D * D, square, square < D, d_value, D, BLOCK_D)
                value = load_rows(folded_values + head * D * D, square, square < D, D, BLOCK_D)
                d_context = dot(upstream, tl.trans(value), None, PRECISION).to(keys.dtype)
                d_attention = dot(d_context, tl.trans(keys), None, PRECISION)
                if num_keys > BLOCK_K:
                    slope = tl.load(slopes + head * K + rows, valid, other=0.0)
                else:
                    slope = tl.sum(attention * d_attention, 1)
                d_scores = attention * (d_attention - slope[:, None])
                d_z += tl.sum(d_scores * products, 1)
                d_products = (d_scores * z[:, None]).to(keys.dtype)
                d_key = dot(tl.trans(attention.to(keys.dtype)), d_context, d_key, PRECISION)
                d_key = dot(tl.trans(d_products), query, d_key, PRECISION)
                d_query = dot(d_products, keys, None, PRECISION)
                add_rows(d_folded_keys + head * K * D, point, active, d_query, D, BLOCK_D)
            if GATED:
                active = active & (z != 0)
            tl.store(d_selection + point, tl.load(d_selection + point, active, other=0.0) + d_z, active)
        offsets, mask = tile(key_rows, key_valid, D, BLOCK_D)
        if depth > 0:
            tl.store(d_y + offsets, d_key, mask)
        else:
            tl.store(d_inputs + offsets, d_key.to(d_inputs.dtype.element_ty), mask)
        tl.debug_barrier()
    return d_values
