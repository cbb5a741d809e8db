// The forward of L layers with one selection and of the adapters' attention, TAFE eq. (17)-(21): one warp a sample, which
// holds all rows in registers. No shared memory, no transposition but the adapters', no barrier.
#pragma once
#include "layout.cuh"
#include "rows.cuh"

// Scores (in units of log 2) of two times eight rows to weights before division, and the divisors' reciprocals.
template <int NK> DEVICE void softmax(F32 (&s)[NK][4], Operand (&a)[NK], Operand (&b)[NK], F32& inverse_a, F32& inverse_b) {
    F32 top_a = maximum(s[0][0], s[0][1]), top_b = maximum(s[0][2], s[0][3]), sum_a = 0.f, sum_b = 0.f;
#pragma unroll
    for (int n = 1; n < NK; ++n) {
        top_a = maximum(top_a, maximum(s[n][0], s[n][1]));
        top_b = maximum(top_b, maximum(s[n][2], s[n][3]));
    }
    top_a = row_max(top_a), top_b = row_max(top_b);
#pragma unroll
    for (int n = 0; n < NK; ++n) {
        F32 e0 = exp2_(s[n][0] - top_a), e1 = exp2_(s[n][1] - top_a), e2 = exp2_(s[n][2] - top_b), e3 = exp2_(s[n][3] - top_b);
        sum_a = sum_a + (e0 + e1), sum_b = sum_b + (e2 + e3);
        a[n] = P::make(e0, e1), b[n] = P::make(e2, e3);
    }
    inverse_a = reciprocal(row_sum(sum_a)), inverse_b = reciprocal(row_sum(sum_b));
}

// Values, transposed: dimensions are rows; [block of value dimensions][block of keys].
template <int NK> DEVICE void project_values(const Arguments& a, const Layout& at, int l, const Operand (&keys)[NK][DB], Operand (&value)[4][NK]) {
#pragma unroll
    for (int p = 0; p < 2; ++p) {
        Operand w[2 * DB], upper[DB], lower[DB];
        read_blocks<P, 2 * DB>(w, a.packed + at.value + (l * 2 + p) * 32 * 2 * SHARE, lane_id() * (2 * SHARE), all_lanes());
#pragma unroll
        for (int k = 0; k < DB; ++k) upper[k] = w[2 * k], lower[k] = w[2 * k + 1];
#pragma unroll
        for (int n = 0; n < NK; ++n) {
            F32 d[4] = {0.f, 0.f, 0.f, 0.f};
            P::template mma<DB>(d, upper, lower, keys[n]);
            value[2 * p][n] = P::make(d[0], d[1]), value[2 * p + 1][n] = P::make(d[2], d[3]);
        }
    }
}

// The queries of eight rows for a head.
DEVICE void read_query(const Arguments& a, const Layout& at, int l, int head, I32 point, F32 z, Operand (&query)[DB]) {
    U32 words[SHARE];
    load<SHARE, ALIGNED<SHARE>>(words, a.packed + at.queries + (l * HEADS + head) * a.sizes.points * ROW, point * ROW + (lane_id() & 3) * SHARE, all_lanes());
#pragma unroll
    for (int k = 0; k < DB; ++k) query[k] = P::scaled(words + k * P::WORDS, P::scale(z));
}

template <int NK> DEVICE void score(F32 (&s)[NK][4], const Operand (&upper)[DB], const Operand (&lower)[DB], const Operand (&keys)[NK][DB], const F32 (&bias)[NK][2]) {
#pragma unroll
    for (int n = 0; n < NK; ++n) {
        s[n][0] = s[n][2] = bias[n][0], s[n][1] = s[n][3] = bias[n][1];
        P::template mma<DB>(s[n], upper, lower, keys[n]);
    }
}

// What two blocks of rows, `pair` and the next, attend to: attended[row block][block of value dimensions].
template <int NK, int NB> DEVICE void attend(const Arguments& a, const Layout& at, int l, int pair, const Operand (&keys)[NK][DB], const F32 (&bias)[NK][2],
                                             const Operand (&value)[4][NK], const Rows<NB>& rows, Operand (&attended)[2][4]) {
    constexpr int IN_TILE = HEADS == 1 ? 1 : 2;  // heads
#pragma unroll
    for (int head = 0; head < HEADS; head += IN_TILE) {
        F32 inverse[IN_TILE][2];
        Operand weights[IN_TILE][2][NK], query[2][DB];  // weights[head][row block]
        if constexpr (HEADS == 1) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int b = pair + i < NB ? pair + i : 0;  // of no use where there is none
                read_query(a, at, l, 0, rows.point[b], rows.z[b], query[i]);
            }
            F32 s[NK][4];
            score<NK>(s, query[0], query[1], keys, bias);
            softmax<NK>(s, weights[0][0], weights[0][1], inverse[0][0], inverse[0][1]);
        } else {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                if (pair + i >= NB) {
#pragma unroll
                    for (int n = 0; n < NK; ++n) weights[0][i][n] = weights[1][i][n] = zero_block();
                    inverse[0][i] = inverse[1][i] = 0.f;
                    continue;
                }
                const int b = pair + i < NB ? pair + i : 0;
                F32 s[NK][4];
                read_query(a, at, l, head, rows.point[b], rows.z[b], query[0]);
                read_query(a, at, l, head + 1, rows.point[b], rows.z[b], query[1]);
                score<NK>(s, query[0], query[1], keys, bias);
                softmax<NK>(s, weights[0][i], weights[1][i], inverse[0][i], inverse[1][i]);
            }
        }
#pragma unroll
        for (int h = 0; h < IN_TILE; ++h)
#pragma unroll
            for (int c = 0; c < V; ++c) {
                F32 d[4] = {0.f, 0.f, 0.f, 0.f};
                const int block = (head + h) * V + c;
                P::template mma<NK>(d, weights[h][0], weights[h][1], value[block]);
                attended[0][block] = P::make(d[0] * inverse[h][0], d[1] * inverse[h][0]);
                attended[1][block] = P::make(d[2] * inverse[h][1], d[3] * inverse[h][1]);
            }
    }
}

// x += attended Wo^T, of two blocks of rows; `w` are the packed blocks of Wo.
DEVICE void project_output(F32 (&x)[2][DB][2], const Operand (&attended)[2][4], const uint32_t* packed) {
#pragma unroll
    for (int n = 0; n < DB; ++n) {
        Operand w[4];
        read_blocks<P, 4>(w, packed + n * 32 * 4 * P::WORDS, lane_id() * (4 * P::WORDS), all_lanes());
        F32 d[4] = {x[0][n][0], x[0][n][1], x[1][n][0], x[1][n][1]};
        P::template mma<4>(d, attended[0], attended[1], w);
        x[0][n][0] = d[0], x[0][n][1] = d[1], x[1][n][0] = d[2], x[1][n][1] = d[3];
    }
}

// What eq. (20) adds to eight rows: the input, the query, or nothing. The first layer's input has other rows.
template <int NK, bool FIRST> DEVICE void residual(const Arguments& a, const Layout& at, int l, int b, I32 point, F32 z, const Operand (&keys)[NK][DB], F32 (&x)[DB][2]) {
    const int kind = FIRST ? a.sizes.first_residual : a.sizes.residual;
    if (!FIRST && kind == INPUT) {
#pragma unroll
        for (int k = 0; k < DB; ++k) x[k][0] = P::first(keys[b < NK ? b : 0][k]), x[k][1] = P::second(keys[b < NK ? b : 0][k]);
    } else if (kind == QUERY) {
        Operand own[DB];
        read_blocks<P, DB>(own, a.packed + at.points + l * a.sizes.points * ROW, point * ROW + (lane_id() & 3) * SHARE, all_lanes());
#pragma unroll
        for (int k = 0; k < DB; ++k) x[k][0] = P::first(own[k]) * z, x[k][1] = P::second(own[k]) * z;
    } else {
#pragma unroll
        for (int k = 0; k < DB; ++k) x[k][0] = x[k][1] = 0.f;
    }
}

template <int NK, int NB, bool FIRST> DEVICE void layer(const Arguments& a, const Layout& at, int l, const Operand (&keys)[NK][DB], const F32 (&bias)[NK][2], const Rows<NB>& rows, Operand (&out)[NB][DB]) {
    I32 t = lane_id() & 3;
    Operand value[4][NK];
    project_values<NK>(a, at, l, keys, value);
    F32 weight[2 * DB], shift[2 * DB];
    const float* norm = reinterpret_cast<const float*>(a.packed + at.norm) + l * 2 * DP;
    read_numbers(weight, norm, t * (2 * DB), all_lanes());
    read_numbers(shift, norm + DP, t * (2 * DB), all_lanes());
#pragma unroll
    for (int pair = 0; pair < NB; pair += 2) {
        Operand attended[2][4];
        attend<NK, NB>(a, at, l, pair, keys, bias, value, rows, attended);
        F32 x[2][DB][2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int b = pair + i < NB ? pair + i : 0;
            residual<NK, FIRST>(a, at, l, b, rows.point[b], rows.z[b], keys, x[i]);
        }
        project_output(x, attended, a.packed + at.output + l * DB * 32 * 4 * P::WORDS);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (pair + i >= NB) continue;
            normalise(x[i], a.sizes.dim);
#pragma unroll
            for (int k = 0; k < DB; ++k)
                out[pair + i < NB ? pair + i : 0][k] = P::make(fma_(x[i][k][0], weight[2 * k], shift[2 * k]), fma_(x[i][k][1], weight[2 * k + 1], shift[2 * k + 1]));
        }
    }
}

// Eq. (21) up to the projections: what each task's and head's one query reads of the rows.
template <int NB> DEVICE void read_for_adapters(const Arguments& a, const Layout& at, int sample, int l, const Operand (&keys)[NB][DB], const F32 (&bias)[NB][2]) {
    I32 lane = lane_id(), g = lane / 4;
    const int queries = a.sizes.tasks * HEADS;
    Operand nothing[DB], none[NB];
#pragma unroll
    for (int k = 0; k < DB; ++k) nothing[k] = zero_block();
#pragma unroll
    for (int n = 0; n < NB; ++n) none[n] = zero_block();
#pragma unroll 1
    for (int start = 0; start < queries; start += 8) {
        Operand query[DB], weights[NB];
        read_blocks<P, DB>(query, a.packed + at.indicators + (l * indicator_rows(a.sizes) + start) * ROW, lane * SHARE, all_lanes());
        F32 s[NB][4];
#pragma unroll
        for (int n = 0; n < NB; ++n) {
            s[n][0] = bias[n][0], s[n][1] = bias[n][1], s[n][2] = s[n][3] = 0.f;
            P::template mma<DB>(s[n], query, nothing, keys[n]);
        }
        F32 top = maximum(s[0][0], s[0][1]), sum = 0.f;
#pragma unroll
        for (int n = 1; n < NB; ++n) top = maximum(top, maximum(s[n][0], s[n][1]));
        top = row_max(top);
#pragma unroll
        for (int n = 0; n < NB; ++n) {
            F32 x = exp2_(s[n][0] - top), y = exp2_(s[n][1] - top);
            sum = sum + (x + y), weights[n] = P::make(x, y);
        }
        F32 inverse = reciprocal(row_sum(sum));
        Operand context[DB];
#pragma unroll
        for (int k = 0; k < DB; ++k) {
            Operand across[NB];
#pragma unroll
            for (int n = 0; n < NB; ++n) across[n] = P::transposed(keys[n][k]);
            F32 d[4] = {0.f, 0.f, 0.f, 0.f};
            P::template mma<NB>(d, weights, none, across);
            context[k] = P::make(d[0] * inverse, d[1] * inverse);
        }
        uint32_t* to = a.contexts + (((long)sample * a.sizes.layers + l) * queries + start) * ROW;
        write_blocks<P, DB>(context, to, lane * SHARE, g + start < queries);
    }
}

template <int NB> DEVICE void keep_rows(const Arguments& a, int sample, int l, int rows, const Operand (&y)[NB][DB]) {
    if (!a.outputs) return;
    I32 lane = lane_id();
    uint32_t* to = a.outputs + ((long)sample * a.sizes.layers + l) * a.sizes.points * ROW;
#pragma unroll
    for (int b = 0; b < NB; ++b) write_blocks<P, DB>(y[b], to, lane * SHARE + 8 * b * ROW, lane / 4 + 8 * b < rows);
}

DEVICE void read_fields(const Arguments& a, int sample, Operand (&fields)[FB][DB], F32 (&bias)[FB][2]) {
    I32 lane = lane_id(), g = lane / 4, t = lane & 3;
    const Sizes& s = a.sizes;
    const int words = words_of_row(s.width);
    const uint32_t* from = a.inputs + (long)sample * s.fields * words;
#pragma unroll
    for (int b = 0; b < FB; ++b) {
        I32 row = g + 8 * b;
        read_blocks<P, DB>(fields[b], from, row * words + t * SHARE, row < s.fields && t * (2 * DB) < s.width);
#pragma unroll
        for (int e = 0; e < 2; ++e) bias[b][e] = where(2 * t + (8 * b + e) < s.fields, F32(0.f), F32(NEVER));
    }
}

template <int NB> DEVICE void sample_rows(const Arguments& a, const Layout& at, int sample, const Selected& s) {
    Rows<NB> rows;
    find_rows(a, sample, s, rows);
    Operand y[NB][DB];
    {
        Operand fields[FB][DB];
        F32 bias[FB][2];
        read_fields(a, sample, fields, bias);
        layer<FB, NB, true>(a, at, 0, fields, bias, rows, y);
    }
    keep_rows<NB>(a, sample, 0, s.rows, y);
    read_for_adapters<NB>(a, at, sample, 0, y, rows.bias);
#pragma unroll 1
    for (int l = 1; l < a.sizes.layers; ++l) {
        Operand next[NB][DB];
        layer<NB, NB, false>(a, at, l, y, rows.bias, rows, next);
#pragma unroll
        for (int b = 0; b < NB; ++b)
#pragma unroll
            for (int k = 0; k < DB; ++k) y[b][k] = next[b][k];
        keep_rows<NB>(a, sample, l, s.rows, y);
        read_for_adapters<NB>(a, at, sample, l, y, rows.bias);
    }
}

// A sample that selects no point where z masks: nothing is read.
DEVICE void write_no_contexts(const Arguments& a, int sample) {
    const int words = a.sizes.layers * a.sizes.tasks * HEADS * ROW;
    const U32 nothing[1] = {0u};
    for (int i = 0; i < words; i += 32) store<1, 1>(nothing, a.contexts + (long)sample * words, lane_id() + i, lane_id() + i < words);
}

struct Forward {
    static constexpr int BLOCKS = P::WORDS == 1 ? 4 : 3;  // of 4 warps, at least, on a multiprocessor
    static DEVICE void run(const Arguments& a, int sample) {
        const Layout at = layout(a.sizes);
        const Selected s = selected(a, sample);
        if (is_first_lane()) a.rows[sample] = s.rows;
        if (s.rows == 0) return write_no_contexts(a, sample);
        if (s.rows <= 8) return sample_rows<1>(a, at, sample, s);
        if (s.rows <= 16) return sample_rows<2>(a, at, sample, s);
        if (s.rows <= 24) return sample_rows<3>(a, at, sample, s);
        if (s.rows <= 32) return sample_rows<4>(a, at, sample, s);
        if (s.rows <= 48) return sample_rows<6>(a, at, sample, s);
        return sample_rows<8>(a, at, sample, s);
    }
};
