// The backward of what a layer and an adapter both end with: x = residual + C Wo^T, then LayerNorm, for N blocks of eight rows.
#pragma once
#include "backward_memory.cuh"

namespace gradients {

// `attended` is C, of two blocks of which the second is 0 if N is 1, `x` the residual and then the gradient of x, as `dx` is, `up` the gradient of LayerNorm's result (0
// for rows that are not there); `output` and `norm` are packed. Adds to the sums of Wo and of LayerNorm. Beyond the
// dimensions that there are, dx is not 0, but meets only zeros.
template <int N>
DEVICE void projection_backward(int dim, const uint32_t* output, const float* norm, const Operand (&attended)[2][4], const F32 (&up)[N][DB][2],
                                F32 (&x)[2][DB][2], Operand (&dx)[2][DB], float* sums) {
    const float inverse_dim = 1.f / dim;
    I32 lane = lane_id(), t = lane & 3;
    Pred all = all_lanes();
#pragma unroll
    for (int n = 0; n < DB; ++n) {
        Operand w[4];
        read_blocks<P, 4>(w, output + n * 32 * 4 * P::WORDS, lane * (4 * P::WORDS), all);
        F32 d[4] = {x[0][n][0], x[0][n][1], x[1][n][0], x[1][n][1]};
        P::template mma<4>(d, attended[0], attended[1], w);
        x[0][n][0] = d[0], x[0][n][1] = d[1], x[1][n][0] = d[2], x[1][n][1] = d[3];
    }
    if constexpr (N == 1) clear(dx[1]);
    U32 weight[2 * DB];
    load<2 * DB, ALIGNED<(2 * DB)>>(weight, reinterpret_cast<const uint32_t*>(norm), t * (2 * DB), all);
    F32 d_weight[2 * DB], d_bias[2 * DB];
#pragma unroll
    for (int i = 0; i < 2 * DB; ++i) d_weight[i] = d_bias[i] = 0.f;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        F32 gy_sum = 0.f, gx_sum = 0.f, rate = normalise(x[i], dim);  // x is then what LayerNorm scales
#pragma unroll
        for (int k = 0; k < DB; ++k)
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                F32 u = up[i][k][e], hat = x[i][k][e], gy = u * number(weight[2 * k + e]);
                d_weight[2 * k + e] = fma_(u, hat, d_weight[2 * k + e]), d_bias[2 * k + e] = d_bias[2 * k + e] + u;
                gy_sum = gy_sum + gy, gx_sum = fma_(gy, hat, gx_sum);
            }
        gy_sum = row_sum(gy_sum) * rate * -inverse_dim, gx_sum = row_sum(gx_sum) * rate * -inverse_dim;
#pragma unroll
        for (int k = 0; k < DB; ++k) {
#pragma unroll
            for (int e = 0; e < 2; ++e) x[i][k][e] = fma_(up[i][k][e] * number(weight[2 * k + e]), rate, fma_(x[i][k][e], gx_sum, gy_sum));
            dx[i][k] = P::make(x[i][k][0], x[i][k][1]);
        }
    }
    add_floats<2 * DB>(d_weight, F32(1.f), sums + NORM_SUMS, lane * (2 * DB), all);
    add_floats<2 * DB>(d_bias, F32(1.f), sums + NORM_SUMS + 8 * DP, lane * (2 * DB), all);
    Operand dx_t[2 * ROW_TILES][N], attended_t[4][N];
    clear(dx_t[2 * ROW_TILES - 1]);
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
        for (int k = 0; k < DB; ++k) dx_t[k][i] = P::transposed(dx[i][k]);
#pragma unroll
        for (int c = 0; c < 4; ++c) attended_t[c][i] = P::transposed(attended[i][c]);
    }
#pragma unroll
    for (int m = 0; m < ROW_TILES; ++m)
#pragma unroll
        for (int c = 0; c < 4; ++c) add_product<N>(sums + OUTPUT_SUMS + (m * 4 + c) * 128, dx_t[2 * m], dx_t[2 * m + 1], attended_t[c]);
}

// The gradient of C: dx Wo, of one value block.
DEVICE void value_gradient(F32 (&d)[4], const uint32_t* output_t, int c, const Operand (&dx)[2][DB]) {
    Operand w[DB];
    read_blocks<P, DB>(w, output_t + c * 32 * SHARE, lane_id() * SHARE, all_lanes());
    d[0] = d[1] = d[2] = d[3] = 0.f;
    P::template mma<DB>(d, dx[0], dx[1], w);
}

}  // namespace gradients
