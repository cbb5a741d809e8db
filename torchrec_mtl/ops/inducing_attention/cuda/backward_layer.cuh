// The backward of a sample's keys: of the next layer's attention to them, TAFE eq. (17)-(20), which is computed again, and
// of the adapters' attention to them, eq. (21) up to the projections.
#pragma once
#include "backward_projection.cuh"

namespace gradients {

// A sample's keys, in NK blocks of eight: Y^l or, if FIRST, the fields; what lies at a lane's place of each table.
template <int NK> struct Keys {
    Operand block[NK][DB], transposed[DB][NK];
    F32 gradient[(NK + 1) / 2][DB][4];
};

// Where a sample's share of memory begins.
struct Sample {
    int index, rows;
    const float *z, *bias;  // [MAX_ROWS]
    const int* point;
    uint32_t* d_outputs;  // rows of ROW words
    float* d_selection;   // [K]
};

DEVICE I32 row_of(int block) { return lane_id() / 4 + 8 * block; }

// The scores' bias of the lane's keys of a block, in units of log 2.
template <bool FIRST> DEVICE void key_bias(const Arguments& a, const Sample& sample, int block, F32 (&bias)[2]) {
    I32 key = (lane_id() & 3) * 2 + 8 * block;
    if constexpr (FIRST)
        bias[0] = where(key < a.sizes.fields, F32(0.f), F32(NEVER)), bias[1] = where(key + 1 < a.sizes.fields, F32(0.f), F32(NEVER));
    else
        read_floats<2>(bias, sample.bias, key, all_lanes());
}

// Where z masks, log z is in the keys' scores: adds the sum over query rows of the scores' gradient, transposed.
template <int N> DEVICE void add_bias_gradient(float* bias_sums, int block, const Operand (&ds_t)[N]) {
    F32 sum[1] = {0.f};
#pragma unroll
    for (int i = 0; i < N; ++i) sum[0] = sum[0] + (P::first(ds_t[i]) + P::second(ds_t[i]));
    sum[0] = row_sum(sum[0]);
    add_floats<1>(sum, F32(1.f), bias_sums, row_of(block), (lane_id() & 3) == 0);
}

// Through the adapters' attention to Y^(l + 1), which are the keys.
template <int NK> DEVICE void adapters_backward(const Arguments& a, const Workspace& w, const Layout& at, const Sample& sample, int l, Keys<NK>& keys, float* sums, float* bias_sums) {
    constexpr int NP = (NK + 1) / 2;
    const int queries = a.sizes.tasks * HEADS;
    I32 lane = lane_id();
    Operand nothing[DB], none[NK];
#pragma unroll
    for (int k = 0; k < DB; ++k) nothing[k] = zero_block();
#pragma unroll
    for (int n = 0; n < NK; ++n) none[n] = zero_block();
#pragma unroll 1
    for (int start = 0; start < queries; start += 8) {
        Operand query[DB], d_context[DB];
        read_blocks<P, DB>(query, a.packed + at.indicators + (l * indicator_rows(a.sizes) + start) * ROW, lane * SHARE, all_lanes());
        const uint32_t* from = reinterpret_cast<const uint32_t*>(a.workspace + w.d_contexts) + (((long)sample.index * a.sizes.layers + l) * queries + start) * ROW;
        read_written<DB>(d_context, from, lane * SHARE, row_of(0) + start < queries);
        F32 s[NK][4], top = NEVER, sum = 0.f, dot = 0.f;
#pragma unroll
        for (int n = 0; n < NK; ++n) {
            F32 bias[2];
            key_bias<false>(a, sample, n, bias);
            s[n][0] = bias[0], s[n][1] = bias[1], s[n][2] = s[n][3] = 0.f;
            P::template mma<DB>(s[n], query, nothing, keys.block[n]);
            top = maximum(top, maximum(s[n][0], s[n][1]));
        }
        top = row_max(top);
#pragma unroll
        for (int n = 0; n < NK; ++n) s[n][0] = exp2_(s[n][0] - top), s[n][1] = exp2_(s[n][1] - top), sum = sum + (s[n][0] + s[n][1]);
        F32 inverse = reciprocal(row_sum(sum));
        F32 d[NK][4];
#pragma unroll
        for (int n = 0; n < NK; ++n) {
            s[n][0] = s[n][0] * inverse, s[n][1] = s[n][1] * inverse;
            d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.f;
            P::template mma<DB>(d[n], d_context, nothing, keys.block[n]);
            dot = fma_(s[n][0], d[n][0], fma_(s[n][1], d[n][1], dot));
        }
        dot = row_sum(dot);
        Operand ds[NK], of_keys[2 * NP][2], right[DB][2];  // of_keys: weights and ds, transposed
        of_keys[2 * NP - 1][0] = of_keys[2 * NP - 1][1] = zero_block();
#pragma unroll
        for (int n = 0; n < NK; ++n) {  // times log 2, for the queries are in units of log 2
            ds[n] = P::make(s[n][0] * (d[n][0] - dot) * LN2, s[n][1] * (d[n][1] - dot) * LN2);
            of_keys[n][0] = P::transposed(P::make(s[n][0], s[n][1])), of_keys[n][1] = P::transposed(ds[n]);
            if (a.sizes.masked) {
                const Operand only[1] = {of_keys[n][1]};
                add_bias_gradient<1>(bias_sums, n, only);
            }
        }
#pragma unroll
        for (int k = 0; k < DB; ++k) right[k][0] = P::transposed(d_context[k]), right[k][1] = P::transposed(query[k]);
#pragma unroll
        for (int m = 0; m < NP; ++m)
#pragma unroll
            for (int k = 0; k < DB; ++k) P::template mma<2>(keys.gradient[m][k], of_keys[2 * m], of_keys[2 * m + 1], right[k]);
        F32 d_query[2 * DB];
#pragma unroll
        for (int k = 0; k < DB; ++k) {
            F32 x[4] = {0.f, 0.f, 0.f, 0.f};
            P::template mma<NK>(x, ds, none, keys.transposed[k]);
            d_query[2 * k] = x[0], d_query[2 * k + 1] = x[1];
        }
        add_floats<2 * DB>(d_query, F32(LOG2E), sums + w.indicator_sums + start * DP, lane * (2 * DB), all_lanes());
    }
}

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
DEVICE void rows_backward(const Arguments& a, const Workspace& w, const Layout& at, const Sample& sample, int l, int first, Keys<NK>& keys, Values<NK>& values, float* sums, float* bias_sums) {
    constexpr int NP = (NK + 1) / 2;
    const int residual = FIRST ? a.sizes.first_residual : a.sizes.residual, points = a.sizes.points;
    I32 t = lane_id() & 3;
    const uint32_t* outputs = a.outputs + ((long)sample.index * a.sizes.layers + (l - 1)) * points * ROW;
    I32 point[2];
    F32 z[2], dz[2] = {0.f, 0.f};
#pragma unroll
    for (int i = 0; i < N; ++i) {
        U32 word[1];
        F32 number[1];
        load_written<1, 1>(word, reinterpret_cast<const uint32_t*>(sample.point), row_of(first + i), all_lanes());
        read_floats<1>(number, sample.z, row_of(first + i), all_lanes());
        point[i] = I32(word[0]), z[i] = number[0];
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
            if (!FIRST && a.sizes.masked) add_bias_gradient<N>(bias_sums, n, ds_t[n]);
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
        F32 sum[1] = {row_sum(dz[i])};
        add_floats<1>(sum, F32(1.f), sample.d_selection, point[i], z[i] != 0.f && t == 0);
    }
}

// Through layer `l`, whose keys these are.
template <int NK, bool FIRST>
DEVICE void layer_backward(const Arguments& a, const Workspace& w, const Layout& at, const Sample& sample, int l, Keys<NK>& keys, float* sums, float* bias_sums) {
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
        for (; 8 * (first + ODD) < sample.rows; first += 2) rows_backward<NK, FIRST, 2>(a, w, at, sample, l, first, keys, values, sums, bias_sums);
    if (ODD && 8 * first < sample.rows) rows_backward<NK, FIRST, 1>(a, w, at, sample, l, first, keys, values, sums, bias_sums);
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
template <int NK, bool FIRST> DEVICE void keys_backward(const Arguments& a, const Workspace& w, const Layout& at, const Sample& sample, int l, float* sums, float* bias_sums) {
    const Sizes& s = a.sizes;
    I32 lane = lane_id(), t = lane & 3;
    const int words = FIRST ? words_of_row(s.width) : ROW, num_keys = FIRST ? s.fields : sample.rows;
    const uint32_t* from = FIRST ? a.inputs + (long)sample.index * s.fields * words : a.outputs + ((long)sample.index * s.layers + (l - 1)) * s.points * ROW;
    sync_warp();  // another sample's point may have had its sums from another lane
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
    if (has_next) layer_backward<NK, FIRST>(a, w, at, sample, l, keys, sums, bias_sums);
    if constexpr (!FIRST) adapters_backward<NK>(a, w, at, sample, l - 1, keys, sums, bias_sums);
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
        U32 point[1];
        F32 z[1], sum[1];
        const F32 nothing[1] = {0.f};
        Pred mine_too = t == 0 && row_of(n) < sample.rows;
        load_written<1, 1>(point, reinterpret_cast<const uint32_t*>(sample.point), row_of(n), all_lanes());
        read_floats<1>(z, sample.z, row_of(n), all_lanes());
        read_floats<1>(sum, bias_sums, row_of(n), mine_too);
        write_floats<1>(nothing, bias_sums, row_of(n), mine_too);
        sum[0] = sum[0] * (1 / LN2) / where(mine_too, z[0], F32(1.f));
        add_floats<1>(sum, F32(1.f), sample.d_selection, I32(point[0]), mine_too);
    }
}

}  // namespace gradients
