// SIMD vectors whose lanes are samples, and the way of samples into lanes and back.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct Lanes {
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename Lanes<T>::Vector;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

// Swaps the off-diagonal S x S blocks of each 2S x 2S block of two rows that are S apart.
template <size_t S, class V, size_t... I>
inline void swap_blocks(V& a, V& b, std::index_sequence<I...>) {
  constexpr size_t n = sizeof...(I);
  const V upper = __builtin_shufflevector(a, b, (I & S ? n + I - S : I)...);
  b = __builtin_shufflevector(a, b, (I & S ? n + I : I + S)...);
  a = upper;
}

template <size_t S, class V, size_t W>
inline void transpose(V (&square)[W]) {
  for (size_t i = 0; i < W; ++i)
    if (!(i & S)) swap_blocks<S>(square[i], square[i + S], std::make_index_sequence<W>());
  if constexpr (S > 1) transpose<S / 2>(square);
}

// The samples of one vector. Lanes beyond the batch's end read zeros and write nothing.
template <class T>
struct Group {
  static constexpr int64_t W = kLanes<T>;
  int64_t first, present;

  Group(int64_t group, int64_t batch) : first(group * W), present(std::min(W, batch - group * W)) {}

  // samples [B, size] to lanes [size]
  void load(Vector<T>* lanes, const T* samples, int64_t size) const {
    samples += first * size;
    int64_t i = 0;
    for (; present == W && i + W <= size; i += W) {
      Vector<T> square[W];
      for (int64_t lane = 0; lane < W; ++lane) memcpy(&square[lane], samples + lane * size + i, sizeof(Vector<T>));
      transpose<W / 2>(square);
      for (int64_t k = 0; k < W; ++k) lanes[i + k] = square[k];
    }
    for (; i < size; ++i) {
      lanes[i] = Vector<T>{};
      for (int64_t lane = 0; lane < present; ++lane) lanes[i][lane] = samples[lane * size + i];
    }
  }

  // lanes [size] to samples [B, size]
  void store(T* samples, const Vector<T>* lanes, int64_t size) const {
    samples += first * size;
    int64_t i = 0;
    for (; present == W && i + W <= size; i += W) {
      Vector<T> square[W];
      for (int64_t k = 0; k < W; ++k) square[k] = lanes[i + k];
      transpose<W / 2>(square);
      for (int64_t lane = 0; lane < W; ++lane) memcpy(samples + lane * size + i, &square[lane], sizeof(Vector<T>));
    }
    for (; i < size; ++i)
      for (int64_t lane = 0; lane < present; ++lane) samples[lane * size + i] = lanes[i][lane];
  }
};
