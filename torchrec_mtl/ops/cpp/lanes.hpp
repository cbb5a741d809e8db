// SIMD vectors whose lanes are samples; loading samples into lanes and storing them.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
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
  struct __attribute__((packed, may_alias)) Unaligned {  // of memcpy GCC 12 makes two halves
    Vector lanes;
  };
};
template <class T>
using Vector = typename Lanes<T>::Vector;
template <class T>
inline Vector<T> load(const T* from) {
  return reinterpret_cast<const typename Lanes<T>::Unaligned*>(from)->lanes;
}
template <class T>
inline void store(T* to, Vector<T> lanes) {
  reinterpret_cast<typename Lanes<T>::Unaligned*>(to)->lanes = lanes;
}
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

// Rows of memory, one for each lane. The first `present` lanes are in use; the others read zeros and write nothing.
template <class T>
struct Rows {
  static constexpr int64_t W = kLanes<T>;
  T* row[W];
  int64_t present;

  // rows [size] to lanes [size]
  void load(Vector<std::remove_const_t<T>>* lanes, int64_t size) const {
    int64_t i = 0;
    for (; present == W && i + W <= size; i += W) {
      Vector<std::remove_const_t<T>> square[W];
      for (int64_t lane = 0; lane < W; ++lane) square[lane] = ::load<std::remove_const_t<T>>(row[lane] + i);
      transpose<W / 2>(square);
      for (int64_t k = 0; k < W; ++k) lanes[i + k] = square[k];
    }
    for (; i < size; ++i) {
      lanes[i] = Vector<std::remove_const_t<T>>{};
      for (int64_t lane = 0; lane < present; ++lane) lanes[i][lane] = row[lane][i];
    }
  }

  // lanes [size] to rows [size], or added to them; row by row, because two rows may be the same memory
  template <bool kAdd = false>
  void store(const Vector<T>* lanes, int64_t size) const {
    int64_t i = 0;
    for (; present == W && i + W <= size; i += W) {
      Vector<T> square[W];
      for (int64_t k = 0; k < W; ++k) square[k] = lanes[i + k];
      transpose<W / 2>(square);
      for (int64_t lane = 0; lane < W; ++lane)
        ::store(row[lane] + i, kAdd ? ::load(row[lane] + i) + square[lane] : square[lane]);
    }
    for (; i < size; ++i)
      for (int64_t lane = 0; lane < present; ++lane) row[lane][i] = lanes[i][lane] + (kAdd ? row[lane][i] : T(0));
  }
};

// The samples in one vector: consecutive samples of the batch, or of `order`.
template <class T>
struct Group {
  static constexpr int64_t W = kLanes<T>;
  int64_t sample[W], present;

  Group(int64_t group, int64_t batch, const int64_t* order = nullptr) : present(std::min(W, batch - group * W)) {
    for (int64_t lane = 0; lane < present; ++lane) sample[lane] = order ? order[group * W + lane] : group * W + lane;
  }

  // the group's rows of a [B, size] array
  template <class E>
  Rows<E> rows(E* samples, int64_t size) const {
    Rows<E> rows = {{}, present};
    for (int64_t lane = 0; lane < present; ++lane) rows.row[lane] = samples + sample[lane] * size;
    return rows;
  }

  // samples [B, size] to lanes [size]
  void load(Vector<T>* lanes, const T* samples, int64_t size) const { rows(samples, size).load(lanes, size); }

  // lanes [size] to samples [B, size]
  void store(T* samples, const Vector<T>* lanes, int64_t size) const { rows(samples, size).store(lanes, size); }
};

// out[i] += the sum of lanes[i]
template <class T>
inline void add_lanes(T* out, const Vector<T>* lanes, int64_t size) {
  constexpr int64_t W = kLanes<T>;
  int64_t i = 0;
  for (; i + W <= size; i += W) {
    Vector<T> square[W];
    for (int64_t k = 0; k < W; ++k) square[k] = lanes[i + k];
    transpose<W / 2>(square);
    Vector<T> sum = load(out + i);
    for (int64_t k = 0; k < W; ++k) sum += square[k];
    store(out + i, sum);
  }
  for (; i < size; ++i)
    for (int64_t lane = 0; lane < W; ++lane) out[i] += lanes[i][lane];
}
