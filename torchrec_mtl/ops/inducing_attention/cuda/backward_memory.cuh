// The backward's memory: what lies in the workspace, what a warp sums up in shared memory, and how a block shares it.
//
// No two warps add to one number: a warp has sums of its own in shared memory, a block adds those of its warps in order,
// and `Reduce` those of the blocks. So results are the same from run to run.
#pragma once
#include <type_traits>

#include "layout.cuh"
#include "rows.cuh"

namespace gradients {

// As Tf32x3, but split anew for each product: two registers a block instead of four, and more instructions.
struct Tf32x3Late {
    static constexpr int WORDS = 2;
    struct Operand { F32 x, y; };
    using Scale = F32;
    static DEVICE Operand make(F32 x, F32 y) { return {x, y}; }
    static DEVICE Operand read(const U32* w) { return {number(w[0]), number(w[1])}; }
    static DEVICE void write(Operand a, U32* w) { w[0] = bits(a.x), w[1] = bits(a.y); }
    static DEVICE F32 first(Operand a) { return a.x; }
    static DEVICE F32 second(Operand a) { return a.y; }
    static DEVICE Scale scale(F32 z) { return z; }
    static DEVICE Operand scaled(const U32* w, Scale z) { return {number(w[0]) * z, number(w[1]) * z}; }
    static DEVICE Operand transposed(Operand a) {
        transpose_numbers(a.x, a.y);
        return a;
    }
    template <int K> static DEVICE void mma(F32 (&d)[4], const Operand (&upper)[K], const Operand (&lower)[K], const Operand (&right)[K]) {
#pragma unroll
        for (int k = 0; k < K; ++k) {
            using Early = Tf32x3::Operand;
            const Early u[1] = {Tf32x3::make(upper[k].x, upper[k].y)}, l[1] = {Tf32x3::make(lower[k].x, lower[k].y)}, r[1] = {Tf32x3::make(right[k].x, right[k].y)};
            Tf32x3::mma<1>(d, u, l, r);
        }
    }
};

using P = std::conditional_t<std::is_same_v<::P, Tf32x3>, Tf32x3Late, ::P>;
using Operand = P::Operand;

constexpr int ROW_TILES = (DB + 1) / 2;  // of 16 dimensions
constexpr int MAX_ROWS = 64;
// The table of a sample's rows: pairs of point and z; what a row's score as a key gets, in units of log 2; where z masks,
// the gradient of that.
constexpr int POINT_AND_Z = 0, BIAS = 2 * MAX_ROWS, BIAS_SUMS = 3 * MAX_ROWS, ROW_TABLE = 4 * MAX_ROWS;

// Where sums lie, in floats. First those that a layer and a task's adapter both have; accumulators of mma are
// [lane, 4], rows [.., DP] are in the dimensions' own order.
constexpr int OUTPUT_SUMS = 0;                                    // Wo: [ROW_TILES, 4 value blocks, lane, 4]
constexpr int VALUE_SUMS = OUTPUT_SUMS + ROW_TILES * 4 * 128;     // Wv: [2 pairs of value blocks, DB, lane, 4]
constexpr int NORM_SUMS = VALUE_SUMS + 2 * DB * 128;              // LayerNorm's weight and bias: [2, 8, DP], to be summed over 8
constexpr int PROJECTION_SUMS = NORM_SUMS + 2 * 8 * DP;
constexpr int QUERY_SUMS = PROJECTION_SUMS;                       // a layer's folded queries: [m, K, DP], then the adapters', then points

struct Workspace {
    int blocks;                                            // of threads
    int indicator_sums, point_sums, layer_sums, all_sums;  // offsets within a layer's sums; its size; of all layers and adapters
    // offsets into the workspace
    long row_tables;      // [B, BIAS_SUMS]
    long d_outputs;       // elements [B, K, DP], of one layer after the other
    long d_contexts;      // elements [B, L, T, m, DP]
    long d_adapted;       // [B, T, DP]
    long partial, total;  // [blocks, all_sums], [all_sums]
    long size;
};

BOTH Workspace plan_workspace(const Sizes& s) {
    Workspace w;
    w.blocks = s.processors < s.batch ? s.processors : s.batch > 0 ? s.batch : 1;
    w.indicator_sums = QUERY_SUMS + HEADS * s.points * DP;
    w.point_sums = w.indicator_sums + indicator_rows(s) * DP;
    w.layer_sums = w.point_sums + s.points * DP;
    w.all_sums = s.layers * (w.layer_sums + s.tasks * PROJECTION_SUMS);
    const long batch = s.batch;
    w.row_tables = 0;
    w.d_outputs = w.row_tables + batch * BIAS_SUMS;
    w.d_contexts = w.d_outputs + batch * s.points * ROW;
    w.d_adapted = w.d_contexts + batch * s.layers * s.tasks * HEADS * ROW;
    w.partial = w.d_adapted + batch * s.tasks * DP;
    w.total = w.partial + (long)w.blocks * w.all_sums;
    w.size = w.total + w.all_sums;
    return w;
}

// A warp's sums of a layer, with or without those of its points. Beside them it has a table of a sample's rows.
BOTH int warp_sums(const Workspace& w, bool of_points) { return of_points ? w.layer_sums : w.point_sums; }

// Where the sums of the adapter of a layer and task lie among all.
DEVICE long adapter_sums(const Sizes& s, const Workspace& w, int layer, int task) {
    return long(s.layers) * w.layer_sums + (long(layer) * s.tasks + task) * PROJECTION_SUMS;
}

#ifdef __CUDACC__
DEVICE int thread() { return threadIdx.x; }
DEVICE int num_threads() { return blockDim.x; }
DEVICE void barrier() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }
// For each warp of the first `count`; a warp is the same number in all of its lanes, and the compiler sees that.
#define EACH_WARP(warp, count) if (const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0); warp < (count))
// A number that is the same in all lanes, so that the compiler sees that.
DEVICE int uniform(int x) { return __shfl_sync(~0u, x, 0); }
// As `load`, of memory that this kernel writes.
template <int N, int ALIGNED> DEVICE void load_written(U32 (&out)[N], const uint32_t* base, I32 offset, Pred mask) {
    constexpr int STEP = ALIGNED >= 4 && N % 4 == 0 ? 4 : ALIGNED >= 2 && N % 2 == 0 ? 2 : 1;
#pragma unroll
    for (int i = 0; i < N; i += STEP) {
        if constexpr (STEP == 4) {
            uint4 x = mask ? *reinterpret_cast<const uint4*>(base + offset + i) : uint4{0, 0, 0, 0};
            out[i] = x.x, out[i + 1] = x.y, out[i + 2] = x.z, out[i + 3] = x.w;
        } else if constexpr (STEP == 2) {
            uint2 x = mask ? *reinterpret_cast<const uint2*>(base + offset + i) : uint2{0, 0};
            out[i] = x.x, out[i + 1] = x.y;
        } else {
            out[i] = mask ? base[offset + i] : 0;
        }
    }
}
#else
inline int thread() { return 0; }
inline int num_threads() { return 1; }
inline void barrier() {}
inline void sync_warp() {}
#define EACH_WARP(warp, count) for (int warp = 0; warp < (count); ++warp)
inline int uniform(int x) { return x; }
template <int N, int ALIGNED> inline void load_written(U32 (&out)[N], const uint32_t* base, const I32& offset, const Pred& mask) {
    load<N, ALIGNED>(out, base, offset, mask);
}
#endif

template <int N> DEVICE void read_written(Operand (&out)[N], const uint32_t* base, I32 offset, Pred mask) {
    U32 words[N * P::WORDS];
    load_written<N * P::WORDS, ALIGNED<(N * P::WORDS)>>(words, base, offset, mask);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = P::read(words + i * P::WORDS);
}
template <int N> DEVICE void read_floats(F32 (&out)[N], const float* base, I32 offset, Pred mask) {
    U32 words[N];
    load_written<N, ALIGNED<N>>(words, reinterpret_cast<const uint32_t*>(base), offset, mask);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = number(words[i]);
}
template <int N> DEVICE void write_floats(const F32 (&in)[N], float* base, I32 offset, Pred mask) {
    U32 words[N];
#pragma unroll
    for (int i = 0; i < N; ++i) words[i] = bits(in[i]);
    store<N, ALIGNED<N>>(words, reinterpret_cast<uint32_t*>(base), offset, mask);
}
// Adds `factor` x to numbers that no other lane of the warp adds to.
template <int N> DEVICE void add_floats(const F32 (&x)[N], F32 factor, float* base, I32 offset, Pred mask) {
    F32 sum[N];
    read_floats<N>(sum, base, offset, mask);
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] = fma_(x[i], factor, sum[i]);
    write_floats<N>(sum, base, offset, mask);
}
// As `add_floats`, of one number in global memory, without waiting for it.
#ifdef __CUDACC__
DEVICE void add_alone(F32 x, float* base, I32 offset, Pred mask) {
    if (mask) atomicAdd(base + offset, x);
}
#else
inline void add_alone(const F32& x, float* base, const I32& offset, const Pred& mask) {
    LANES if (mask.v[l]) base[offset.v[l]] += x.v[l];
}
#endif
// An accumulator's [lane, 4] += [upper; lower] right
template <int K> DEVICE void add_product(float* sums, const Operand (&upper)[K], const Operand (&lower)[K], const Operand (&right)[K]) {
    F32 d[4];
    I32 at = lane_id() * 4;
    fetch(d, sums, at);
    P::template mma<K>(d, upper, lower, right);
    put(d, sums, at);
}

struct alignas(16) Four {
    float x[4];
};

// Writes the sum over warps of `size` numbers, each `stride` after the last warp's, and clears them; all in fours.
DEVICE void add_warps(float* shared, int stride, int first, int step, int warps, int size, float* to) {
    for (int i = 4 * thread(); i < size; i += 4 * num_threads()) {
        Four sum = {{0.f, 0.f, 0.f, 0.f}};
        for (int warp = first; warp < warps; warp += step) {
            Four& of_warp = *reinterpret_cast<Four*>(shared + warp * stride + i);
            const Four x = of_warp;
#pragma unroll
            for (int k = 0; k < 4; ++k) sum.x[k] += x.x[k];
            of_warp = {{0.f, 0.f, 0.f, 0.f}};
        }
        *reinterpret_cast<Four*>(to + i) = sum;
    }
}

DEVICE Operand zero_block() { return P::make(F32(0.f), F32(0.f)); }
template <int N> DEVICE void clear(Operand (&blocks)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) blocks[i] = zero_block();
}
template <int N> DEVICE void clear_numbers(F32 (&x)[N][2]) {
#pragma unroll
    for (int i = 0; i < N; ++i) x[i][0] = x[i][1] = 0.f;
}

}  // namespace gradients
