// How blocks of 8 x 8 numbers are held and multiplied. A lane (g = lane / 4, t = lane % 4) holds of a block two
// neighbours, row g, columns 2 t and 2 t + 1. An accumulator of mma is two such blocks one above the other; so are, for
// each 8 of k, its operands. Hence any two blocks make an operand, and results are operands as they lie.
#pragma once
#include "warp.cuh"

struct Bf16 {
    static constexpr int WORDS = 1;  // a lane's of a block, in memory
    struct Operand { U32 w; };
    using Scale = U32;
    static DEVICE Operand read(const U32* w) { return {w[0]}; }
    static DEVICE void write(Operand a, U32* w) { w[0] = a.w; }
    static DEVICE Operand make(F32 x, F32 y) { return {pack_bf16(x, y)}; }
    static DEVICE F32 first(Operand a) { return number(a.w << 16); }
    static DEVICE F32 second(Operand a) { return number(a.w & 0xffff0000u); }
    static DEVICE Scale scale(F32 z) { return pack_bf16(z, z); }
    static DEVICE Operand scaled(const U32* w, Scale z) { return {multiply_bf16(w[0], z)}; }
    static DEVICE Operand transposed(Operand a) { return {transpose_8x8(a.w)}; }
    // d += [upper; lower] right
    template <int K> static DEVICE void mma(F32 (&d)[4], const Operand (&upper)[K], const Operand (&lower)[K], const Operand (&right)[K]) {
#pragma unroll
        for (int k = 0; k + 1 < K; k += 2)
            mma_bf16_k16(d, upper[k].w, lower[k].w, upper[k + 1].w, lower[k + 1].w, right[k].w, right[k + 1].w);
        if constexpr (K % 2) mma_bf16_k8(d, upper[K - 1].w, lower[K - 1].w, right[K - 1].w);
    }
};

struct Fp16 : Bf16 {
    static DEVICE Operand make(F32 x, F32 y) { return {pack_f16(x, y)}; }
    static DEVICE F32 first(Operand a) { return f16_low(a.w); }
    static DEVICE F32 second(Operand a) { return f16_high(a.w); }
    static DEVICE Scale scale(F32 z) { return pack_f16(z, z); }
    static DEVICE Operand scaled(const U32* w, Scale z) { return {multiply_f16(w[0], z)}; }
    template <int K> static DEVICE void mma(F32 (&d)[4], const Operand (&upper)[K], const Operand (&lower)[K], const Operand (&right)[K]) {
#pragma unroll
        for (int k = 0; k + 1 < K; k += 2)
            mma_f16_k16(d, upper[k].w, lower[k].w, upper[k + 1].w, lower[k + 1].w, right[k].w, right[k + 1].w);
        if constexpr (K % 2) mma_f16_k8(d, upper[K - 1].w, lower[K - 1].w, right[K - 1].w);
    }
};

// Two numbers of float32 a lane, transposed: each lane takes its two from the two lanes that hold them.
DEVICE void transpose_numbers(F32& x, F32& y) {
    I32 lane = lane_id(), g = lane / 4, t = lane & 3, from = t * 8 + g / 2;  // row 2 t, columns g and its neighbour
    Pred odd = (g & 1) == 1;
    F32 upper = where(odd, shfl(y, from), shfl(x, from)), lower = where(odd, shfl(y, from + 4), shfl(x, from + 4));
    x = upper, y = lower;
}

// float32 by three products of tf32: the small halves' product is left out.
struct Tf32x3 {
    static constexpr int WORDS = 2;
    struct Operand { U32 x, y, small_x, small_y; };
    using Scale = F32;
    // Cut, not rounded: cvt.rna is five instructions, this is two, and NaN stays NaN. The device cuts the small half.
    static DEVICE Operand make(F32 x, F32 y) {
        U32 a = bits(x) & 0xffffe000u, b = bits(y) & 0xffffe000u;
        return {a, b, bits(x - number(a)), bits(y - number(b))};
    }
    static DEVICE Operand read(const U32* w) { return make(number(w[0]), number(w[1])); }
    static DEVICE void write(Operand a, U32* w) { w[0] = bits(first(a)), w[1] = bits(second(a)); }
    static DEVICE F32 first(Operand a) { return number(a.x) + number(a.small_x); }
    static DEVICE F32 second(Operand a) { return number(a.y) + number(a.small_y); }
    static DEVICE Scale scale(F32 z) { return z; }
    static DEVICE Operand scaled(const U32* w, Scale z) { return make(number(w[0]) * z, number(w[1]) * z); }
    static DEVICE Operand transposed(Operand a) {
        F32 x = first(a), y = second(a);
        transpose_numbers(x, y);
        return make(x, y);
    }
    template <int K> static DEVICE void mma(F32 (&d)[4], const Operand (&upper)[K], const Operand (&lower)[K], const Operand (&right)[K]) {
#pragma unroll
        for (int k = 0; k < K; ++k) {  // the k-th of eight is any as long as both sides agree: columns 2 t, then 2 t + 1
            const Operand &u = upper[k], &l = lower[k], &r = right[k];
            mma_tf32_k8(d, u.small_x, l.small_x, u.small_y, l.small_y, r.x, r.y);
            mma_tf32_k8(d, u.x, l.x, u.y, l.y, r.small_x, r.small_y);
            mma_tf32_k8(d, u.x, l.x, u.y, l.y, r.x, r.y);
        }
    }
};

struct Tf32 {
    static constexpr int WORDS = 2;
    struct Operand { U32 x, y; };
    using Scale = F32;
    static DEVICE Operand make(F32 x, F32 y) { return {to_tf32(x), to_tf32(y)}; }
    static DEVICE Operand read(const U32* w) { return make(number(w[0]), number(w[1])); }
    static DEVICE void write(Operand a, U32* w) { w[0] = a.x, w[1] = a.y; }
    static DEVICE F32 first(Operand a) { return number(a.x); }
    static DEVICE F32 second(Operand a) { return number(a.y); }
    static DEVICE Scale scale(F32 z) { return z; }
    static DEVICE Operand scaled(const U32* w, Scale z) { return make(number(w[0]) * z, number(w[1]) * z); }
    static DEVICE Operand transposed(Operand a) {
        F32 x = first(a), y = second(a);
        transpose_numbers(x, y);
        return {bits(x), bits(y)};
    }
    template <int K> static DEVICE void mma(F32 (&d)[4], const Operand (&upper)[K], const Operand (&lower)[K], const Operand (&right)[K]) {
#pragma unroll
        for (int k = 0; k < K; ++k) mma_tf32_k8(d, upper[k].x, lower[k].x, upper[k].y, lower[k].y, right[k].x, right[k].y);
    }
};

template <int WORDS> constexpr int ALIGNED = WORDS % 4 == 0 ? 4 : WORDS % 2 == 0 ? 2 : 1;

// A lane's share of N blocks that lie one after the other.
template <class P, int N> DEVICE void read_blocks(typename P::Operand (&out)[N], const uint32_t* base, I32 offset, Pred mask) {
    U32 words[N * P::WORDS];
    load<N * P::WORDS, ALIGNED<(N * P::WORDS)>>(words, base, offset, mask);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = P::read(words + i * P::WORDS);
}
template <class P, int N> DEVICE void write_blocks(const typename P::Operand (&in)[N], uint32_t* base, I32 offset, Pred mask) {
    U32 words[N * P::WORDS];
#pragma unroll
    for (int i = 0; i < N; ++i) P::write(in[i], words + i * P::WORDS);
    store<N * P::WORDS, ALIGNED<(N * P::WORDS)>>(words, base, offset, mask);
}
template <int N> DEVICE void read_numbers(F32 (&out)[N], const float* base, I32 offset, Pred mask) {
    U32 words[N];
    load<N, ALIGNED<N>>(words, reinterpret_cast<const uint32_t*>(base), offset, mask);
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = number(words[i]);
}
