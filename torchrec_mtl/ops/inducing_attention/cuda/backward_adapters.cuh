// The backward of the adapters' projections and LayerNorm, TAFE eq. (22), of one layer, for 16 samples and a task.
#pragma once
#include "backward_projection.cuh"

namespace gradients {

// `first` is the first sample, `step` from each to the next. The gradient of T^l is read, that of T^(l - 1) takes its place.
DEVICE void projections_backward(const Arguments& a, const Workspace& w, const Layout& at, int first, int step, int l, int task, float* sums) {
    const Sizes& s = a.sizes;
    I32 lane = lane_id(), g = lane / 4, t = lane & 3;
    const int matrix = l * s.tasks + task, of_sample = s.layers * s.tasks, words = words_of_row(s.width);
    const uint32_t* contexts = a.contexts + ((long)first * of_sample + matrix) * HEADS * ROW;
    uint32_t* d_contexts = reinterpret_cast<uint32_t*>(a.workspace + w.d_contexts) + ((long)first * of_sample + matrix) * HEADS * ROW;
    float* d_adapted = a.workspace + w.d_adapted + ((long)first * s.tasks + task) * DP;
    Operand context[HEADS][2][DB], attended[2][4];
    F32 x[2][DB][2], up[2][DB][2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        I32 place = (g + 8 * i) * step;
        Pred there = place < s.batch - first;
#pragma unroll
        for (int h = 0; h < HEADS; ++h) read_blocks<P, DB>(context[h][i], contexts + h * ROW, place * (of_sample * HEADS * ROW) + t * SHARE, there);
        F32 number[2 * DB];
        read_floats<2 * DB>(number, a.adapted + (long)first * of_sample * DP + (l > 0 ? matrix - s.tasks : 0) * DP, place * (of_sample * DP) + t * (2 * DB), there && I32(l) > 0);
#pragma unroll
        for (int k = 0; k < DB; ++k) x[i][k][0] = number[2 * k], x[i][k][1] = number[2 * k + 1];
        if (l == s.layers - 1) {
            Operand upstream[DB];
            read_blocks<P, DB>(upstream, a.upstream + ((long)first * s.tasks + task) * words, place * (s.tasks * words) + t * SHARE, there && t * (2 * DB) < s.width);
#pragma unroll
            for (int k = 0; k < DB; ++k) up[i][k][0] = P::first(upstream[k]), up[i][k][1] = P::second(upstream[k]);
        } else {
            read_floats<2 * DB>(number, d_adapted, place * (s.tasks * DP) + t * (2 * DB), there);
#pragma unroll
            for (int k = 0; k < DB; ++k) up[i][k][0] = number[2 * k], up[i][k][1] = number[2 * k + 1];
        }
    }
#pragma unroll
    for (int p = 0; p < 2; ++p) {
        Operand both[2 * DB];
        read_blocks<P, 2 * DB>(both, a.packed + at.adapter_value + (matrix * 2 + p) * 32 * 2 * SHARE, lane * (2 * SHARE), all_lanes());
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const int c = 2 * p + r;
            Operand right[DB];
            F32 d[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
            for (int k = 0; k < DB; ++k) right[k] = both[2 * k + r];
            P::template mma<DB>(d, context[c / V][0], context[c / V][1], right);
            attended[0][c] = P::make(d[0], d[1]), attended[1][c] = P::make(d[2], d[3]);
        }
    }
    Operand dx[2][DB];
    projection_backward<2>(s.dim, a.packed + at.adapter_output + matrix * DB * 32 * 4 * P::WORDS, reinterpret_cast<const float*>(a.packed + at.adapter_norm) + matrix * 2 * DP, attended, up, x, dx, sums);
    if (l > 0)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            F32 number[2 * DB];
#pragma unroll
            for (int k = 0; k < DB; ++k) number[2 * k] = x[i][k][0], number[2 * k + 1] = x[i][k][1];
            write_floats<2 * DB>(number, d_adapted, (g + 8 * i) * step * (s.tasks * DP) + t * (2 * DB), (g + 8 * i) * step < s.batch - first);
        }
    Operand d_value[2][4], d_value_t[4][2];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
        F32 d[4];
        value_gradient(d, a.packed + at.adapter_output_t + matrix * 4 * 32 * SHARE, c, dx);
        d_value[0][c] = P::make(d[0], d[1]), d_value[1][c] = P::make(d[2], d[3]);
        d_value_t[c][0] = P::transposed(d_value[0][c]), d_value_t[c][1] = P::transposed(d_value[1][c]);
    }
    // Wv's, and what was attended to, head by head
    Operand d_context[2][HEADS][DB];
#pragma unroll
    for (int k = 0; k < DB; ++k) {
        Operand value_t[4];
        read_blocks<P, 4>(value_t, a.packed + at.adapter_value_t + (matrix * DB + k) * 32 * 4 * P::WORDS, lane * (4 * P::WORDS), all_lanes());
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            Operand upper[V], lower[V], right[V];
#pragma unroll
            for (int v = 0; v < V; ++v) upper[v] = d_value[0][h * V + v], lower[v] = d_value[1][h * V + v], right[v] = value_t[h * V + v];
            F32 d[4] = {0.f, 0.f, 0.f, 0.f};
            P::template mma<V>(d, upper, lower, right);
            d_context[0][h][k] = P::make(d[0], d[1]), d_context[1][h][k] = P::make(d[2], d[3]);
        }
        const Operand none[2] = {zero_block(), zero_block()};
#pragma unroll
        for (int c = 0; c < 4; c += 2) {
            const int h = c / V, other = (c + 1) / V;
            const Operand right[2] = {P::transposed(context[h][0][k]), P::transposed(context[h][1][k])};
            float* to = sums + VALUE_SUMS + (c / 2 * DB + k) * 128;
            if constexpr (V > 1)
                add_product<2>(to, d_value_t[c], d_value_t[c + 1], right);
            else {
                const Operand of_other[2] = {P::transposed(context[other][0][k]), P::transposed(context[other][1][k])};
                add_product<2>(to, d_value_t[c], none, right);
                add_product<2>(to, none, d_value_t[c + 1], of_other);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int h = 0; h < HEADS; ++h)
            write_blocks<P, DB>(d_context[i][h], d_contexts + h * ROW, (g + 8 * i) * step * (of_sample * HEADS * ROW) + t * SHARE, (g + 8 * i) * step < s.batch - first);
}

}  // namespace gradients
