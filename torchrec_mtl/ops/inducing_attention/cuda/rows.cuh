// The rows of a sample that are computed, and LayerNorm of eight rows.
#pragma once
#include "arguments.cuh"
#include "precisions.cuh"

using P = PRECISION;
using Operand = P::Operand;
constexpr int DP = 8 * DB;
constexpr int ROW = 4 * DB * P::WORDS;  // words of a row of DP elements
constexpr int SHARE = DB * P::WORDS;    // a lane's of them
constexpr int V = 4 / HEADS;            // blocks of value dimensions of a head
constexpr float NEVER = -1e30f;

DEVICE Operand zero_block() { return P::make(F32(0.f), F32(0.f)); }
DEVICE Pred all_lanes() { return lane_id() >= 0; }
DEVICE int words_of_row(int elements) { return elements * P::WORDS / 2; }
BOTH int indicator_rows(const Sizes& s) { return (s.tasks * HEADS + 7) / 8 * 8; }

// Which points of a sample are selected: as bits.
struct Selected {
    uint32_t low, high;
    int active, rows;
};

DEVICE Selected selected(const Arguments& a, int sample) {
    const int points = a.sizes.points;
    I32 lane = lane_id();
    U32 low[1], high[1];
    const uint32_t* z = reinterpret_cast<const uint32_t*>(a.selection) + (long)sample * points;
    load<1, 1>(low, z, lane, lane < points);
    load<1, 1>(high, z, lane + 32, lane + 32 < points);
    Selected s;
    s.low = vote((low[0] << 1) != 0u), s.high = vote((high[0] << 1) != 0u);  // -0 is 0
    s.active = count_bits(s.low) + count_bits(s.high);
    s.rows = s.active + (s.active < points && !a.sizes.masked);
    return s;
}

// Rows in NB blocks of eight: a lane's row of block b is g + 8 b, its keys are 2 t + e + 8 b.
template <int NB> struct Rows {
    I32 point[NB];    // 0 for a row that is no point's
    F32 z[NB];        // 0 for such a row
    F32 bias[NB][2];  // of the score of the lane's keys, in units of log 2
};

template <int NB> DEVICE void find_rows(const Arguments& a, int sample, const Selected& s, Rows<NB>& rows) {
    I32 lane = lane_id(), g = lane / 4, t = lane & 3;
    const int zeros = a.sizes.points - s.active;
    const float log_zeros = log2f(float(zeros > 0 ? zeros : 1));
    const uint32_t* z = reinterpret_cast<const uint32_t*>(a.selection) + (long)sample * a.sizes.points;
#pragma unroll
    for (int b = 0; b < NB; ++b) {
        Pred is_point = g + 8 * b < s.active;
        rows.point[b] = where(is_point, nth_bit(s.low, s.high, g + 8 * b), I32(0));
        U32 word[1];
        load<1, 1>(word, z, rows.point[b], is_point);
        rows.z[b] = number(word[0]);
#pragma unroll
        for (int e = 0; e < 2; ++e) {
            I32 key = 2 * t + (8 * b + e);
            F32 of_point = 0.f;
            if (a.sizes.masked) of_point = log2_(shfl(rows.z[b], 8 * t + 4 * e));  // of row 2 t + e
            rows.bias[b][e] = where(key < s.active, of_point, where(key < s.rows, F32(log_zeros), F32(NEVER)));
        }
    }
}

// Centres and scales eight rows of D numbers, of which a lane has x[b][e]; returns 1 / deviation. Beyond D they become 0.
DEVICE F32 normalise(F32 (&x)[DB][2], int dim) {
    F32 sum = 0.f, squares = 0.f;
    const float inverse_dim = 1.f / dim;
#pragma unroll
    for (int b = 0; b < DB; ++b) sum = sum + (x[b][0] + x[b][1]);
    F32 mean = row_sum(sum) * inverse_dim;
#pragma unroll
    for (int b = 0; b < DB; ++b) x[b][0] = x[b][0] - mean, x[b][1] = x[b][1] - mean;
    if (dim < DP) {
        I32 left = dim - (lane_id() & 3) * (2 * DB);
#pragma unroll
        for (int b = 0; b < DB; ++b)
#pragma unroll
            for (int e = 0; e < 2; ++e) x[b][e] = where(left > 2 * b + e, x[b][e], F32(0.f));
    }
#pragma unroll
    for (int b = 0; b < DB; ++b) squares = fma_(x[b][0], x[b][0], squares), squares = fma_(x[b][1], x[b][1], squares);
    F32 rate = rsqrt_(fma_(row_sum(squares), F32(inverse_dim), F32(EPS)));
#pragma unroll
    for (int b = 0; b < DB; ++b) x[b][0] = x[b][0] * rate, x[b][1] = x[b][1] * rate;
    return rate;
}
