// A sample's keys, and the backward of the adapters' attention to them, TAFE eq. (21) up to the projections.
#pragma once
#include "backward_memory.cuh"

namespace gradients {

// A sample's keys, in NK blocks of eight: Y^l or, if FIRST, the fields; what lies at a lane's place of each table.
template <int NK> struct Keys {
    Operand block[NK][DB], transposed[DB][NK];
    F32 gradient[(NK + 1) / 2][DB][4];
};

// A sample, and where its share of memory begins.
struct Sample {
    int index, rows;
    uint32_t* d_outputs;  // rows of ROW words
    float* d_selection;   // [K]
    float* row_table;     // ROW_TABLE numbers, in shared memory
};

DEVICE I32 row_of(int block) { return lane_id() / 4 + 8 * block; }

// The scores' bias of the lane's keys of a block, in units of log 2.
template <bool FIRST> DEVICE void key_bias(const Arguments& a, const Sample& sample, int block, F32 (&bias)[2]) {
    I32 key = (lane_id() & 3) * 2 + 8 * block;
    if constexpr (FIRST)
        bias[0] = where(key < a.sizes.fields, F32(0.f), F32(NEVER)), bias[1] = where(key + 1 < a.sizes.fields, F32(0.f), F32(NEVER));
    else
        read_floats<2>(bias, sample.row_table + BIAS, key, all_lanes());
}

// Where z masks, log z is in the keys' scores: adds the sum over query rows of the scores' gradient, transposed.
template <int N> DEVICE void add_bias_gradient(const Sample& sample, int block, const Operand (&ds_t)[N]) {
    F32 sum[1] = {0.f};
#pragma unroll
    for (int i = 0; i < N; ++i) sum[0] = sum[0] + (P::first(ds_t[i]) + P::second(ds_t[i]));
    sum[0] = row_sum(sum[0]);
    add_floats<1>(sum, F32(1.f), sample.row_table + BIAS_SUMS, row_of(block), (lane_id() & 3) == 0);
}

// Through the adapters' attention to Y^(l + 1), which are the keys.
template <int NK> DEVICE void adapters_backward(const Arguments& a, const Workspace& w, const Layout& at, const Sample& sample, int l, Keys<NK>& keys, float* sums) {
    constexpr int NP = (NK + 1) / 2;
    const int queries = a.sizes.tasks * HEADS;
    I32 lane = lane_id();
    Operand nothing[DB], none[NK];
    clear(nothing), clear(none);
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
        clear(of_keys[2 * NP - 1]);
#pragma unroll
        for (int n = 0; n < NK; ++n) {  // times log 2, for the queries are in units of log 2
            ds[n] = P::make(s[n][0] * (d[n][0] - dot) * LN2, s[n][1] * (d[n][1] - dot) * LN2);
            of_keys[n][0] = P::transposed(P::make(s[n][0], s[n][1])), of_keys[n][1] = P::transposed(ds[n]);
            if (a.sizes.masked) {
                const Operand only[1] = {of_keys[n][1]};
                add_bias_gradient<1>(sample, n, only);
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

}  // namespace gradients
