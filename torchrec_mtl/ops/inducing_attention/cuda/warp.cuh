// A warp's primitives. One source for CUDA (a value is a lane's register) and for a CPU (a value is 32 lanes' registers).
//
// Values that differ between lanes are F32, I32, U32, Pred; plain float, int, bool are the same in all lanes. Control
// flow takes plain bools only: a Pred does not convert, so that a divergent branch does not compile on the CPU.
// Fragment layouts: PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", ".m16n8k8 ... .tf32/.bf16";
// there groupID = lane / 4, threadID_in_group = lane % 4.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define DEVICE __device__ __forceinline__
#define BOTH __host__ __device__ inline

using F32 = float;
using I32 = int;
using U32 = uint32_t;
using Pred = bool;

DEVICE I32 lane_id() { return threadIdx.x & 31; }
DEVICE F32 shfl_xor(F32 x, int mask) { return __shfl_xor_sync(~0u, x, mask); }
DEVICE F32 shfl(F32 x, I32 from) { return __shfl_sync(~0u, x, from); }
DEVICE I32 shfl(I32 x, I32 from) { return __shfl_sync(~0u, x, from); }
DEVICE uint32_t vote(Pred p) { return __ballot_sync(~0u, p); }
DEVICE int count_bits(uint32_t x) { return __popc(x); }
DEVICE I32 count_bits_lanes(U32 x) { return __popc(x); }
template <class T> DEVICE T where(Pred c, T a, T b) { return c ? a : b; }
DEVICE F32 maximum(F32 a, F32 b) { return fmaxf(a, b); }
DEVICE F32 fma_(F32 a, F32 b, F32 c) { return fmaf(a, b, c); }
DEVICE F32 log2_(F32 x) { return log2f(x); }
DEVICE F32 exp2_(F32 x) { F32 y; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE F32 reciprocal(F32 x) { F32 y; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE F32 rsqrt_(F32 x) { F32 y; asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); return y; }
DEVICE uint32_t one_lane(U32 x) { return x; }
DEVICE bool is_first_lane() { return (threadIdx.x & 31) == 0; }
DEVICE U32 bits(F32 x) { return __float_as_uint(x); }
DEVICE F32 number(U32 x) { return __uint_as_float(x); }
DEVICE U32 to_tf32(F32 x) { U32 y; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x)); return y; }
DEVICE U32 pack_bf16(F32 low, F32 high) {
    U32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
DEVICE U32 pack_f16(F32 low, F32 high) {
    U32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
DEVICE F32 f16_low(U32 x) {
    F32 y;
    asm("{ .reg .b16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low; }" : "=f"(y) : "r"(x));
    return y;
}
DEVICE F32 f16_high(U32 x) { return f16_low(x >> 16); }
DEVICE U32 multiply_f16(U32 a, U32 b) {
    U32 y;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    return y;
}
DEVICE U32 multiply_bf16(U32 a, U32 b) {
    U32 y;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(0x80008000u));
    return y;
}
DEVICE void mma_bf16_k16(F32 (&d)[4], U32 a0, U32 a1, U32 a2, U32 a3, U32 b0, U32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DEVICE void mma_bf16_k8(F32 (&d)[4], U32 a0, U32 a1, U32 b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b0));
}
DEVICE void mma_f16_k16(F32 (&d)[4], U32 a0, U32 a1, U32 a2, U32 a3, U32 b0, U32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DEVICE void mma_f16_k8(F32 (&d)[4], U32 a0, U32 a1, U32 b0) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b0));
}
DEVICE void mma_tf32_k8(F32 (&d)[4], U32 a0, U32 a1, U32 a2, U32 a3, U32 b0, U32 b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// The 8 x 8 matrix of 16-bit numbers (row lane / 4, columns 2 (lane % 4) and the next), transposed.
DEVICE U32 transpose_8x8(U32 x) {
    U32 y;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}
// N consecutive words from word `offset` on (a multiple of ALIGNED); 0 where `mask` is false.
template <int N, int ALIGNED> DEVICE void load(U32 (&out)[N], const uint32_t* base, I32 offset, Pred mask) {
    constexpr int STEP = ALIGNED >= 4 && N % 4 == 0 ? 4 : ALIGNED >= 2 && N % 2 == 0 ? 2 : 1;
#pragma unroll
    for (int i = 0; i < N; i += STEP) {
        if constexpr (STEP == 4) {
            uint4 x = mask ? __ldg(reinterpret_cast<const uint4*>(base + offset + i)) : uint4{0, 0, 0, 0};
            out[i] = x.x, out[i + 1] = x.y, out[i + 2] = x.z, out[i + 3] = x.w;
        } else if constexpr (STEP == 2) {
            uint2 x = mask ? __ldg(reinterpret_cast<const uint2*>(base + offset + i)) : uint2{0, 0};
            out[i] = x.x, out[i + 1] = x.y;
        } else {
            out[i] = mask ? __ldg(base + offset + i) : 0;
        }
    }
}
template <int N, int ALIGNED> DEVICE void store(const U32 (&in)[N], uint32_t* base, I32 offset, Pred mask) {
    constexpr int STEP = ALIGNED >= 4 && N % 4 == 0 ? 4 : ALIGNED >= 2 && N % 2 == 0 ? 2 : 1;
    if (!mask) return;
#pragma unroll
    for (int i = 0; i < N; i += STEP) {
        if constexpr (STEP == 4)
            *reinterpret_cast<uint4*>(base + offset + i) = uint4{in[i], in[i + 1], in[i + 2], in[i + 3]};
        else if constexpr (STEP == 2)
            *reinterpret_cast<uint2*>(base + offset + i) = uint2{in[i], in[i + 1]};
        else
            base[offset + i] = in[i];
    }
}
// Four numbers of memory that the warp also writes: shared memory, 16 bytes aligned.
DEVICE void fetch(F32 (&out)[4], const float* base, I32 offset) {
    float4 x = *reinterpret_cast<const float4*>(base + offset);
    out[0] = x.x, out[1] = x.y, out[2] = x.z, out[3] = x.w;
}
DEVICE void put(const F32 (&in)[4], float* base, I32 offset) { *reinterpret_cast<float4*>(base + offset) = float4{in[0], in[1], in[2], in[3]}; }
#else  // a CPU

#define DEVICE inline
#define BOTH inline
#define LANES for (int l = 0; l < 32; ++l)

template <class T> struct alignas(64) Lane {
    T v[32];
    Lane() = default;
    Lane(T x) { LANES v[l] = x; }
    template <class U> explicit Lane(const Lane<U>& x) { LANES v[l] = static_cast<T>(x.v[l]); }
    explicit operator bool() const = delete;  // a divergent branch
};
using F32 = Lane<float>;
using I32 = Lane<int>;
using U32 = Lane<uint32_t>;
using Pred = Lane<bool>;

#define BINARY(OP, RESULT)                                                                             \
    template <class T> inline Lane<RESULT> operator OP(const Lane<T>& a, const Lane<T>& b) {           \
        Lane<RESULT> y;                                                                                \
        LANES y.v[l] = a.v[l] OP b.v[l];                                                               \
        return y;                                                                                      \
    }                                                                                                  \
    template <class T, class S> inline Lane<RESULT> operator OP(const Lane<T>& a, S b) { return a OP Lane<T>(T(b)); } \
    template <class T, class S> inline Lane<RESULT> operator OP(S a, const Lane<T>& b) { return Lane<T>(T(a)) OP b; }
BINARY(+, T) BINARY(-, T) BINARY(*, T) BINARY(/, T) BINARY(&, T) BINARY(|, T) BINARY(^, T) BINARY(<<, T) BINARY(>>, T)
BINARY(%, T) BINARY(<, bool) BINARY(>, bool) BINARY(<=, bool) BINARY(>=, bool) BINARY(==, bool) BINARY(!=, bool)
#undef BINARY
inline Pred operator&&(const Pred& a, const Pred& b) { Pred y; LANES y.v[l] = a.v[l] && b.v[l]; return y; }
inline Pred operator||(const Pred& a, const Pred& b) { Pred y; LANES y.v[l] = a.v[l] || b.v[l]; return y; }

inline I32 lane_id() { I32 y; LANES y.v[l] = l; return y; }
template <class T> inline Lane<T> shfl_xor(const Lane<T>& x, int mask) { Lane<T> y; LANES y.v[l] = x.v[l ^ mask]; return y; }
template <class T> inline Lane<T> shfl(const Lane<T>& x, const I32& from) { Lane<T> y; LANES y.v[l] = x.v[from.v[l] & 31]; return y; }
inline uint32_t vote(const Pred& p) { uint32_t y = 0; LANES y |= uint32_t(p.v[l]) << l; return y; }
inline int count_bits(uint32_t x) { return __builtin_popcount(x); }
inline I32 count_bits_lanes(const U32& x) { I32 y; LANES y.v[l] = __builtin_popcount(x.v[l]); return y; }
template <class T> inline Lane<T> where(const Pred& c, const Lane<T>& a, const Lane<T>& b) { Lane<T> y; LANES y.v[l] = c.v[l] ? a.v[l] : b.v[l]; return y; }
inline F32 maximum(const F32& a, const F32& b) { F32 y; LANES y.v[l] = a.v[l] > b.v[l] ? a.v[l] : b.v[l]; return y; }
inline F32 fma_(const F32& a, const F32& b, const F32& c) { F32 y; LANES y.v[l] = std::fma(a.v[l], b.v[l], c.v[l]); return y; }
inline F32 log2_(const F32& x) { F32 y; LANES y.v[l] = log2f(x.v[l]); return y; }
inline F32 exp2_(const F32& x) { F32 y; LANES y.v[l] = exp2f(x.v[l]); return y; }
inline F32 reciprocal(const F32& x) { F32 y; LANES y.v[l] = 1 / x.v[l]; return y; }
inline F32 rsqrt_(const F32& x) { F32 y; LANES y.v[l] = 1 / std::sqrt(x.v[l]); return y; }
inline uint32_t one_lane(const U32& x) { return x.v[0]; }
inline bool is_first_lane() { return true; }
inline U32 bits(const F32& x) { U32 y; memcpy(&y, &x, sizeof y); return y; }
inline F32 number(const U32& x) { F32 y; memcpy(&y, &x, sizeof y); return y; }
inline U32 to_tf32(const F32& x) { return where((bits(x) & 0x7fffffffu) > 0x7f800000u, U32(0x7fffe000u), (bits(x) + 0x1000u) & 0xffffe000u); }  // ties away from 0
inline uint32_t bf16(float x) { uint32_t y; memcpy(&y, &x, 4); return (y & 0x7fffffff) > 0x7f800000 ? 0x7fff : (y + 0x7fff + (y >> 16 & 1)) >> 16; }
inline float bf16_number(uint32_t x) { x <<= 16; float y; memcpy(&y, &x, 4); return y; }
inline U32 pack_bf16(const F32& low, const F32& high) { U32 y; LANES y.v[l] = bf16(low.v[l]) | bf16(high.v[l]) << 16; return y; }
inline U32 multiply_bf16(const U32& a, const U32& b) {
    U32 y;
    LANES y.v[l] = bf16(bf16_number(a.v[l]) * bf16_number(b.v[l])) | bf16(bf16_number(a.v[l] >> 16) * bf16_number(b.v[l] >> 16)) << 16;
    return y;
}
inline uint32_t f16(float x) { _Float16 h = static_cast<_Float16>(x); uint16_t y; memcpy(&y, &h, 2); return y; }
inline float f16_number(uint32_t x) { uint16_t y = x; _Float16 h; memcpy(&h, &y, 2); return h; }
inline U32 pack_f16(const F32& low, const F32& high) { U32 y; LANES y.v[l] = f16(low.v[l]) | f16(high.v[l]) << 16; return y; }
inline F32 f16_low(const U32& x) { F32 y; LANES y.v[l] = f16_number(x.v[l]); return y; }
inline F32 f16_high(const U32& x) { return f16_low(x >> 16); }
inline U32 multiply_f16(const U32& a, const U32& b) {
    U32 y;
    LANES y.v[l] = f16(f16_number(a.v[l]) * f16_number(b.v[l])) | f16(f16_number(a.v[l] >> 16) * f16_number(b.v[l] >> 16)) << 16;
    return y;
}
namespace emulated {
// d[16 x 8] += a[16 x K] b[K x 8] from and to fragments; the sums in float32, k by k (the device's order is its own).
template <int K> inline void multiply(F32 (&d)[4], const float (&a)[16][K], const float (&b)[K][8]) {
    float c[16][8];
    LANES for (int i = 0; i < 4; ++i) c[l / 4 + (i < 2 ? 0 : 8)][l % 4 * 2 + (i & 1)] = d[i].v[l];
    for (int k = 0; k < K; ++k)
        for (int m = 0; m < 16; ++m)
            for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
    LANES for (int i = 0; i < 4; ++i) d[i].v[l] = c[l / 4 + (i < 2 ? 0 : 8)][l % 4 * 2 + (i & 1)];
}
template <int K, float (*NUMBER)(uint32_t)> inline void half_fragments(F32 (&d)[4], const U32* const (&ra)[K / 4], const U32* const (&rb)[K / 8]) {
    float a[16][K], b[K][8];
    LANES {
        int group = l >> 2, thread = l % 4;
        for (int i = 0; i < K / 2; ++i) {  // a_i: row group where i < 2 or 4 <= i < 6, else group + 8; 8 columns on from i = 4
            int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
            int column = thread * 2 + (i & 1) + (i < 4 ? 0 : 8);
            a[row][column] = NUMBER(ra[i / 2]->v[l] >> 16 * (i & 1) & 0xffff);
        }
        for (int i = 0; i < K / 4; ++i)
            b[thread * 2 + (i & 1) + (i < 2 ? 0 : 8)][group] = NUMBER(rb[i / 2]->v[l] >> 16 * (i & 1) & 0xffff);
    }
    multiply<K>(d, a, b);
}
}  // namespace emulated
inline void mma_bf16_k16(F32 (&d)[4], const U32& a0, const U32& a1, const U32& a2, const U32& a3, const U32& b0, const U32& b1) {
    emulated::half_fragments<16, bf16_number>(d, {&a0, &a1, &a2, &a3}, {&b0, &b1});
}
inline void mma_bf16_k8(F32 (&d)[4], const U32& a0, const U32& a1, const U32& b0) { emulated::half_fragments<8, bf16_number>(d, {&a0, &a1}, {&b0}); }
inline void mma_f16_k16(F32 (&d)[4], const U32& a0, const U32& a1, const U32& a2, const U32& a3, const U32& b0, const U32& b1) {
    emulated::half_fragments<16, f16_number>(d, {&a0, &a1, &a2, &a3}, {&b0, &b1});
}
inline void mma_f16_k8(F32 (&d)[4], const U32& a0, const U32& a1, const U32& b0) { emulated::half_fragments<8, f16_number>(d, {&a0, &a1}, {&b0}); }
inline void mma_tf32_k8(F32 (&d)[4], const U32& a0, const U32& a1, const U32& a2, const U32& a3, const U32& b0, const U32& b1) {
    const U32* ra[4] = {&a0, &a1, &a2, &a3};
    float a[16][8], b[8][8];
    auto truncated = [](uint32_t x) { x &= 0xffffe000u; float y; memcpy(&y, &x, 4); return y; };  // what is not rounded is cut
    LANES {
        int group = l >> 2, thread = l % 4;
        for (int i = 0; i < 4; ++i) a[i == 0 || i == 2 ? group : group + 8][i < 2 ? thread : thread + 4] = truncated(ra[i]->v[l]);
        b[thread][group] = truncated(b0.v[l]), b[thread + 4][group] = truncated(b1.v[l]);
    }
    emulated::multiply<8>(d, a, b);
}
inline U32 transpose_8x8(const U32& x) {
    U32 y;
    auto at = [&](int row, int column) { return x.v[row * 4 + column / 2] >> 16 * (column & 1) & 0xffff; };
    LANES y.v[l] = at(l % 4 * 2, l / 4) | at(l % 4 * 2 + 1, l / 4) << 16;
    return y;
}
template <int N, int ALIGNED> inline void load(U32 (&out)[N], const uint32_t* base, const I32& offset, const Pred& mask) {
    LANES {
        if (mask.v[l] && (reinterpret_cast<uintptr_t>(base + offset.v[l]) % (4 * (ALIGNED > 4 ? 4 : ALIGNED)))) __builtin_trap();  // misaligned
        for (int i = 0; i < N; ++i) out[i].v[l] = mask.v[l] ? base[offset.v[l] + i] : 0;
    }
}
template <int N, int ALIGNED> inline void store(const U32 (&in)[N], uint32_t* base, const I32& offset, const Pred& mask) {
    LANES if (mask.v[l]) for (int i = 0; i < N; ++i) base[offset.v[l] + i] = in[i].v[l];
}
inline void fetch(F32 (&out)[4], const float* base, const I32& offset) { LANES for (int i = 0; i < 4; ++i) out[i].v[l] = base[offset.v[l] + i]; }
inline void put(const F32 (&in)[4], float* base, const I32& offset) { LANES for (int i = 0; i < 4; ++i) base[offset.v[l] + i] = in[i].v[l]; }
#endif

// A thread's own numbers, no warp's.
#ifdef __CUDACC__
DEVICE float bf16_scalar(uint32_t x) { return __uint_as_float(x << 16); }
DEVICE float f16_scalar(uint32_t x) { return f16_low(x); }
#else
inline float bf16_scalar(uint32_t x) { return bf16_number(x); }
inline float f16_scalar(uint32_t x) { return f16_number(x); }
#endif

// Over the four lanes that share a fragment's row.
DEVICE F32 row_sum(F32 x) { x = x + shfl_xor(x, 1); return x + shfl_xor(x, 2); }
DEVICE F32 row_max(F32 x) { x = maximum(x, shfl_xor(x, 1)); return maximum(x, shfl_xor(x, 2)); }
// The position of the set bit that has `rank` set bits below it, of a 64-bit mask.
DEVICE I32 nth_bit(uint32_t low, uint32_t high, I32 rank) {
    int below = count_bits(low);
    Pred upper = rank >= below;
    U32 word = where(upper, U32(high), U32(low));
    I32 left = where(upper, rank - below, rank), position = where(upper, I32(32), I32(0));
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int width = 16; width; width /= 2) {
        I32 count = count_bits_lanes(word & ((1u << width) - 1));
        Pred skip = left >= count;
        left = where(skip, left - count, left);
        position = where(skip, position + width, position);
        word = where(skip, word >> width, word);
    }
    return position;
}
