// The backward of a sample's keys: of the next layer, whose keys they are, and of the adapters' attention to them.
#pragma once
#include "backward_rows.cuh"

namespace gradients {

// Through layer `l`, whose keys these are.
template <int NK, bool FIRST>
DEVICE void layer_backward(const Arguments& a, const Workspace& w, const Layout& at, const Sample& sample, int l, Keys<NK>& keys, float* sums) {
    constexpr int NP = (NK + 1) / 2;
    I32 lane = lane_id();
    Values<NK> values;
#pragma unroll
    for (int p = 0; p < 2; ++p) {
        Operand both[2 * DB], upper[DB], lower[DB];
        read_blocks<P, 2 * DB>(both, a.packed + at.value + (l * 2 + p) * 32 * 2 * SHARE, lane * (2 * SHARE), all_lanes());
#pragma unroll
        for (int k = 0; k < DB; ++k) upper[k] = both[2 * k], lower[k] = both[2 * k + 1];
#pragma unroll
        for (int n = 0; n < NK; ++n) {
            F32 d[4] = {0.f, 0.f, 0.f, 0.f};
            P::template mma<DB>(d, upper, lower, keys.block[n]);
            values.transposed[2 * p][n] = P::make(d[0], d[1]), values.transposed[2 * p + 1][n] = P::make(d[2], d[3]);
            values.block[n][2 * p] = P::transposed(values.transposed[2 * p][n]), values.block[n][2 * p + 1] = P::transposed(values.transposed[2 * p + 1][n]);
        }
    }
#pragma unroll
    for (int m = 0; m < NP; ++m)
#pragma unroll
        for (int c = 0; c < 4; ++c)
#pragma unroll
            for (int i = 0; i < 4; ++i) values.gradient[m][c][i] = 0.f;

    constexpr bool ODD = FIRST || NK == 1 || NK == 3;  // rows may end with a block that is alone
    int first = 0;
    if constexpr (FIRST || NK > 1)
#pragma unroll 1
        for (; 8 * (first + ODD) < sample.rows; first += 2) rows_backward<NK, FIRST, 2>(a, w, at, sample, l, first, keys, values, sums);
    if (ODD && 8 * first < sample.rows) rows_backward<NK, FIRST, 1>(a, w, at, sample, l, first, keys, values, sums);
    // Through the values: dY += dV Wv, dWv += dV^T Y
    Operand d_value_t[4][2 * NP];
#pragma unroll
    for (int m = 0; m < NP; ++m) {
        Operand up[4], down[4];
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            F32(&d)[4] = values.gradient[m][c];
            up[c] = P::make(d[0], d[1]), down[c] = P::make(d[2], d[3]);
            d_value_t[c][2 * m] = P::transposed(up[c]), d_value_t[c][2 * m + 1] = P::transposed(down[c]);
        }
#pragma unroll
        for (int k = 0; k < DB; ++k) {
            Operand right[4];
            read_blocks<P, 4>(right, a.packed + at.value_t + (l * DB + k) * 32 * 4 * P::WORDS, lane * (4 * P::WORDS), all_lanes());
            P::template mma<4>(keys.gradient[m][k], up, down, right);
        }
    }
#pragma unroll
    for (int p = 0; p < 2; ++p) {
        Operand up[NK], down[NK];
#pragma unroll
        for (int n = 0; n < NK; ++n) up[n] = d_value_t[2 * p][n], down[n] = d_value_t[2 * p + 1][n];
#pragma unroll
        for (int k = 0; k < DB; ++k) add_product<NK>(sums + VALUE_SUMS + (p * DB + k) * 128, up, down, keys.transposed[k]);
    }
}

// Everything that comes back to the fields (if FIRST), or to Y^l.
template <int NK, bool FIRST> DEVICE void keys_backward(const Arguments& a, const Workspace& w, const Layout& at, const Sample& sample, int l, float* sums) {
    const Sizes& s = a.sizes;
    I32 lane = lane_id(), t = lane & 3;
    const int words = FIRST ? words_of_row(s.width) : ROW, num_keys = FIRST ? s.fields : sample.rows;
    const uint32_t* from = FIRST ? a.inputs + (long)sample.index * s.fields * words : a.outputs + ((long)sample.index * s.layers + (l - 1)) * s.points * ROW;
    Pred mine = t * (2 * DB) < (FIRST ? s.width : DP);
    Keys<NK> keys;
#pragma unroll
    for (int n = 0; n < NK; ++n) {
        read_blocks<P, DB>(keys.block[n], from, row_of(n) * words + t * SHARE, mine && row_of(n) < num_keys);
#pragma unroll
        for (int k = 0; k < DB; ++k) {
            keys.transposed[k][n] = P::transposed(keys.block[n][k]);
#pragma unroll
            for (int i = 0; i < 4; ++i) keys.gradient[n / 2][k][i] = 0.f;
        }
    }
    const bool has_next = l < s.layers;
    if (has_next) layer_backward<NK, FIRST>(a, w, at, sample, l, keys, sums);
    if constexpr (!FIRST) adapters_backward<NK>(a, w, at, sample, l - 1, keys, sums);
#pragma unroll
    for (int n = 0; n < NK; ++n) {
        Operand out[DB];
        F32 rest[DB][2];
#pragma unroll
        for (int k = 0; k < DB; ++k) rest[k][0] = rest[k][1] = 0.f;
        if (!FIRST && has_next && s.residual == INPUT) {
            Operand waiting[DB];
            read_written<DB>(waiting, sample.d_outputs, row_of(n) * ROW + t * SHARE, row_of(n) < sample.rows);
#pragma unroll
            for (int k = 0; k < DB; ++k) rest[k][0] = P::first(waiting[k]), rest[k][1] = P::second(waiting[k]);
        }
#pragma unroll
        for (int k = 0; k < DB; ++k) {
            F32(&d)[4] = keys.gradient[n / 2][k];
            const int e = 2 * (n % 2);
            out[k] = P::make(d[e] + rest[k][0], d[e + 1] + rest[k][1]);
        }
        if constexpr (FIRST)
            write_blocks<P, DB>(out, a.d_inputs + (long)sample.index * s.fields * words, row_of(n) * words + t * SHARE, mine && row_of(n) < num_keys);
        else
            write_blocks<P, DB>(out, sample.d_outputs, row_of(n) * ROW + t * SHARE, row_of(n) < num_keys);
    }
    if (!FIRST && s.masked)
#pragma unroll 1
    for (int n = 0; n < NK; ++n) {  // log z's part of z's gradient
        F32 of_row[2], sum[1];
        Pred there = t == 0 && row_of(n) < sample.rows;
        read_floats<2>(of_row, sample.row_table + POINT_AND_Z, row_of(n) * 2, all_lanes());
        read_floats<1>(sum, sample.row_table + BIAS_SUMS, row_of(n), there);
        add_alone(sum[0] * (1 / LN2) / where(there, of_row[1], F32(1.f)), sample.d_selection, I32(bits(of_row[0])), there);
    }
}

}  // namespace gradients
