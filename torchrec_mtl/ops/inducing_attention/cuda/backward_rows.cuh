// The backward of a layer, TAFE eq. (17)-(20), for some of its rows; its forward is computed again.
#pragma once
#include "backward_keys.cuh"
#include "backward_projection.cuh"

namespace gradients {

// A block times two numbers.
template <class Block> DEVICE Block times(Block a, F32 x, F32 y) {
    if constexpr (P::WORDS == 1) {
        const Block factors = P::make(x, y);
        return P::scaled(&a.w, factors.w);
    } else
        return P::make(P::first(a) * x, P::second(a) * y);
}

// Softmax of 16 rows' scores, to weights: weights[row block].
template <int NK> DEVICE void softmax(F32 (&s)[NK][4], Operand (&weights)[2][NK]) {
    F32 top_a = maximum(s[0][0], s[0][1]), top_b = maximum(s[0][2], s[0][3]), sum_a = 0.f, sum_b = 0.f;
#pragma unroll
    for (int n = 1; n < NK; ++n) top_a = maximum(top_a, maximum(s[n][0], s[n][1])), top_b = maximum(top_b, maximum(s[n][2], s[n][3]));
    top_a = row_max(top_a), top_b = row_max(top_b);
#pragma unroll
    for (int n = 0; n < NK; ++n) {
        s[n][0] = exp2_(s[n][0] - top_a), s[n][1] = exp2_(s[n][1] - top_a), s[n][2] = exp2_(s[n][2] - top_b), s[n][3] = exp2_(s[n][3] - top_b);
        sum_a = sum_a + (s[n][0] + s[n][1]), sum_b = sum_b + (s[n][2] + s[n][3]);
    }
    sum_a = reciprocal(row_sum(sum_a)), sum_b = reciprocal(row_sum(sum_b));
#pragma unroll
    for (int n = 0; n < NK; ++n) weights[0][n] = P::make(s[n][0] * sum_a, s[n][1] * sum_a), weights[1][n] = P::make(s[n][2] * sum_b, s[n][3] * sum_b);
}

// The folded queries of a head for eight rows, as they lie.
DEVICE void read_queries(const Arguments& a, const Layout& at, int l, int head, I32 point, U32 (&words)[SHARE]) {
    load<SHARE, ALIGNED<SHARE>>(words, a.packed + at.queries + (l * HEADS + head) * a.sizes.points * ROW, point * ROW + (lane_id() & 3) * SHARE, all_lanes());
}

// A layer's values: value dimensions are rows if transposed, and the gradient is an accumulator of two blocks of keys.
template <int NK> struct Values {
    Operand transposed[4][NK], block[NK][4];
    F32 gradient[(NK + 1) / 2][4][4];
};

// Through layer `l` for N blocks of eight of its rows from block `first` on; N is 1 or 2.
template <int NK, bool FIRST, int N>
DEVICE void rows_backward(const Arguments& a, const Workspace& w, const Layout& at, const Sample& sample, int l, int first, Keys<NK>& keys, Values<NK>& values, float* sums) {
    constexpr int NP = (NK + 1) / 2;
    const int residual = FIRST ? a.sizes.first_residual : a.sizes.residual, points = a.sizes.points;
    I32 t = lane_id() & 3;
    const uint32_t* outputs = a.outputs + ((long)sample.index * a.sizes.layers + (l - 1)) * points * ROW;
    I32 point[2];
    F32 z[2], dz[2] = {0.f, 0.f};
#pragma unroll
    for (int i = 0; i < N; ++i) {
        F32 of_row[2];
        read_floats<2>(of_row, sample.row_table + POINT_AND_Z, row_of(first + i) * 2, all_lanes());
        point[i] = I32(bits(of_row[0])), z[i] = of_row[1];
    }
    // The forward again.
    Operand weights[HEADS][2][NK], query_t[HEADS][DB][N], attended[2][4];
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        Operand query[2][DB];
        if constexpr (N == 1) clear(query[1]);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            U32 words[SHARE];
            read_queries(a, at, l, h, point[i], words);
#pragma unroll
            for (int k = 0; k < DB; ++k) query[i][k] = P::scaled(words + k * P::WORDS, P::scale(z[i])), query_t[h][k][i] = P::transposed(query[i][k]);
        }
        F32 s[NK][4];
#pragma unroll
        for (int n = 0; n < NK; ++n) {
            F32 bias[2];
            key_bias<FIRST>(a, sample, n, bias);
            s[n][0] = s[n][2] = bias[0], s[n][1] = s[n][3] = bias[1];
            P::template mma<DB>(s[n], query[0], query[1], keys.block[n]);
        }
        softmax<NK>(s, weights[h]);
        if constexpr (N == 1) clear(weights[h][1]);
#pragma unroll
        for (int c = h * V; c < (h + 1) * V; ++c) {
            F32 d[4] = {0.f, 0.f, 0.f, 0.f};
            P::template mma<NK>(d, weights[h][0], weights[h][1], values.transposed[c]);
            attended[0][c] = P::make(d[0], d[1]), attended[1][c] = P::make(d[2], d[3]);
        }
    }
    F32 x[2][DB][2], up[N][DB][2];
    Operand dx[2][DB];
    if constexpr (N == 1) clear(attended[1]), clear_numbers(x[1]);
#pragma unroll
    for (int i = 0; i < N; ++i) {
        Operand own[DB], upstream[DB];
        I32 at_row = row_of(first + i) * ROW + t * SHARE;
        Pred there = row_of(first + i) < sample.rows;
        read_written<DB>(upstream, sample.d_outputs, at_row, there);
#pragma unroll
        for (int k = 0; k < DB; ++k) {
            x[i][k][0] = x[i][k][1] = 0.f;
            up[i][k][0] = P::first(upstream[k]), up[i][k][1] = P::second(upstream[k]);
        }
        if (!FIRST && residual == INPUT) {
            read_blocks<P, DB>(own, outputs, at_row, there);
#pragma unroll
            for (int k = 0; k < DB; ++k) x[i][k][0] = P::first(own[k]), x[i][k][1] = P::second(own[k]);
        } else if (residual == QUERY) {
            read_blocks<P, DB>(own, a.packed + at.points + l * points * ROW, point[i] * ROW + t * SHARE, all_lanes());
#pragma unroll
            for (int k = 0; k < DB; ++k) x[i][k][0] = P::first(own[k]) * z[i], x[i][k][1] = P::second(own[k]) * z[i];
        }
    }
    projection_backward<N>(a.sizes.dim, a.packed + at.output + l * DB * 32 * 4 * P::WORDS, reinterpret_cast<const float*>(a.packed + at.norm) + l * 2 * DP, attended, up, x, dx, sums);
    // To the residual. The input's waits in memory for the rest of its gradient.
#pragma unroll
    for (int i = 0; i < N; ++i) {
        if (!FIRST && residual == INPUT)
            write_blocks<P, DB>(dx[i], sample.d_outputs, row_of(first + i) * ROW + t * SHARE, row_of(first + i) < sample.rows);
        else if (residual == QUERY) {
            Operand own[DB];
            F32 d_point[2 * DB];
            read_blocks<P, DB>(own, a.packed + at.points + l * points * ROW, point[i] * ROW + t * SHARE, all_lanes());
#pragma unroll
            for (int k = 0; k < DB; ++k) {
                dz[i] = fma_(x[i][k][0], P::first(own[k]), fma_(x[i][k][1], P::second(own[k]), dz[i]));
                d_point[2 * k] = x[i][k][0], d_point[2 * k + 1] = x[i][k][1];
            }
            add_floats<2 * DB>(d_point, z[i], sums + w.point_sums, point[i] * DP + t * (2 * DB), z[i] != 0.f);
        }
    }
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        Operand d_context[2][V], d_context_t[V][N];
        F32 dot[2] = {0.f, 0.f};
#pragma unroll
        for (int v = 0; v < V; ++v) {
            F32 d[4];
            Operand upper = attended[0][h * V + v], lower = attended[1][h * V + v];
            value_gradient(d, a.packed + at.output_t + l * 4 * 32 * SHARE, h * V + v, dx);
            dot[0] = fma_(d[0], P::first(upper), fma_(d[1], P::second(upper), dot[0])), dot[1] = fma_(d[2], P::first(lower), fma_(d[3], P::second(lower), dot[1]));
            d_context[0][v] = P::make(d[0], d[1]), d_context[1][v] = P::make(d[2], d[3]);
#pragma unroll
            for (int i = 0; i < N; ++i) d_context_t[v][i] = P::transposed(d_context[i][v]);
        }
        if constexpr (N == 1) clear(d_context[1]);
        dot[0] = row_sum(dot[0]) * -LN2, dot[1] = row_sum(dot[1]) * -LN2;
        Operand ds[2][NK], ds_t[2 * NP][N], weights_t[2 * NP][N];
        clear(ds_t[2 * NP - 1]), clear(weights_t[2 * NP - 1]);
        if constexpr (N == 1) clear(ds[1]);
#pragma unroll
        for (int n = 0; n < NK; ++n) {
            Operand right[V];
#pragma unroll
            for (int v = 0; v < V; ++v) right[v] = values.block[n][h * V + v];
            F32 d[4] = {0.f, 0.f, 0.f, 0.f};
            P::template mma<V>(d, d_context[0], d_context[1], right);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                Operand weight = weights[h][i][n];
                ds[i][n] = times(weight, fma_(d[2 * i], F32(LN2), dot[i]), fma_(d[2 * i + 1], F32(LN2), dot[i]));
                ds_t[n][i] = P::transposed(ds[i][n]), weights_t[n][i] = P::transposed(weight);
            }
            if (!FIRST && a.sizes.masked) add_bias_gradient<N>(sample, n, ds_t[n]);
        }
#pragma unroll
        for (int m = 0; m < NP; ++m) {
#pragma unroll
            for (int v = 0; v < V; ++v) P::template mma<N>(values.gradient[m][h * V + v], weights_t[2 * m], weights_t[2 * m + 1], d_context_t[v]);
#pragma unroll
            for (int k = 0; k < DB; ++k) P::template mma<N>(keys.gradient[m][k], ds_t[2 * m], ds_t[2 * m + 1], query_t[h][k]);
        }
        U32 words[2][SHARE];
        F32 d_query[2][2 * DB];
#pragma unroll
        for (int i = 0; i < N; ++i) read_queries(a, at, l, h, point[i], words[i]);
#pragma unroll
        for (int k = 0; k < DB; ++k) {
            F32 d[4] = {0.f, 0.f, 0.f, 0.f};
            P::template mma<NK>(d, ds[0], ds[1], keys.transposed[k]);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                Operand own = P::read(&words[i][k * P::WORDS]);
                dz[i] = fma_(d[2 * i], P::first(own), fma_(d[2 * i + 1], P::second(own), dz[i]));
                d_query[i][2 * k] = d[2 * i], d_query[i][2 * k + 1] = d[2 * i + 1];
            }
        }
#pragma unroll
        for (int i = 0; i < N; ++i) add_floats<2 * DB>(d_query[i], z[i] * LOG2E, sums + QUERY_SUMS + h * points * DP, point[i] * DP + t * (2 * DB), z[i] != 0.f);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        F32 sum = row_sum(dz[i]);
        add_alone(sum, sample.d_selection, point[i], z[i] != 0.f && t == 0);
    }
}

}  // namespace gradients
