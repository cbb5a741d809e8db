// The parts of attention, each for the samples in one vector: two products, the softmax, the projections.

#pragma once

#include <cstdint>
#include <type_traits>

#include "lanes.hpp"

constexpr int64_t kColumns = 12;  // most columns in registers at once

// Calls `f` for columns [c, c + C) until all are done, in parts as equal as possible; the compiler knows each C.
template <class F>
inline void for_columns(int64_t columns, F f) {
  const int64_t parts = (columns + kColumns - 1) / kColumns;
  for (int64_t part = 0, c = 0; part < parts; ++part) {
    const int64_t next = (part + 1) * columns / parts;
    switch (next - c) {
#define COLUMNS(C) case C: f(std::integral_constant<int, C>(), c); break;
      COLUMNS(1) COLUMNS(2) COLUMNS(3) COLUMNS(4) COLUMNS(5) COLUMNS(6)
      COLUMNS(7) COLUMNS(8) COLUMNS(9) COLUMNS(10) COLUMNS(11) COLUMNS(12)
#undef COLUMNS
    }
    c = next;
  }
}

// s[j] = sum_c q[c] k[j][c]: a vector times rows that are `stride` apart. A row holds vectors, or scalars that all
// samples share.
template <class V, class E>
inline void dots(V* __restrict s, const V* __restrict q, const E* __restrict k, int64_t stride, int64_t rows,
                 int64_t columns) {
  for_columns(columns, [=](auto width, int64_t first) {
    constexpr int C = width;
    V own[C];
#pragma GCC unroll 12
    for (int c = 0; c < C; ++c) own[c] = q[first + c];
    const E* row = k + first;
    for (int64_t j = 0; j < rows; ++j, row += stride) {
      V sum = own[0] * row[0];
      for (int c = 1; c < C; ++c) sum += own[c] * row[c];
      s[j] = first ? s[j] + sum : sum;
    }
  });
}

// o[c] (+)= sum_j p[j] v[j][c]: a weighted sum of rows. The weights are `p_stride` apart, the rows `v_stride`.
template <bool kAdd, class V, class E>
inline void combine(V* __restrict o, const V* __restrict p, int64_t p_stride, const E* __restrict v, int64_t v_stride,
                    int64_t rows, int64_t columns) {
  for_columns(columns, [=](auto width, int64_t first) {
    constexpr int C = width;
    V sum[C];
#pragma GCC unroll 12  // otherwise it becomes a memset, the last loop a memcpy, and `sum` leaves the registers
    for (int c = 0; c < C; ++c) sum[c] = kAdd ? o[first + c] : V{};
    const V* weight = p;
    const E* row = v + first;
    for (int64_t j = 0; j < rows; ++j, weight += p_stride, row += v_stride)
      for (int c = 0; c < C; ++c) sum[c] += *weight * row[c];
#pragma GCC unroll 12
    for (int c = 0; c < C; ++c) o[first + c] = sum[c];
  });
}

template <class T>
struct Format;
template <>
struct Format<float> {
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23, kLowest = -126, kTerms = 7;
};
template <>
struct Format<double> {
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52, kLowest = -1022, kTerms = 13;
};

// The coefficients of the Taylor series of 2^x.
template <class T>
struct Taylor {
  T coefficient[Format<T>::kTerms + 1] = {1};
  constexpr Taylor() {
    for (int n = 1; n <= Format<T>::kTerms; ++n) coefficient[n] = coefficient[n - 1] * T(0.69314718055994530942) / n;
  }
};

// 2^x to an ulp or two for x <= 0, but at least the smallest normal number. NaN stays NaN.
template <class T>
inline Vector<T> power_of_two(Vector<T> x) {
  using F = Format<T>;
  using Bits = typename F::Bits;
  constexpr Taylor<T> series;
  constexpr T kRound = T(3) * (int64_t(1) << (F::kMantissa - 1));  // adding it puts the integer into the low bits
  const Vector<T> lowest = T(F::kLowest) + Vector<T>{};
  x = lowest > x ? lowest : x;
  const Vector<T> integer = x + kRound, fraction = x - (integer - kRound);
  Vector<T> sum = series.coefficient[F::kTerms] + Vector<T>{};
#pragma GCC unroll 16
  for (int n = F::kTerms - 1; n >= 0; --n) sum = sum * fraction + series.coefficient[n];
  return (Vector<T>)((Bits)sum + ((Bits)integer << F::kMantissa));
}

// Scores s to exponentials, s to 2^(unit (s - highest)); returns 1 / their sum. `unit` is 1 for scores that are base-2
// logarithms and log2(e) for natural ones.
template <class T>
inline Vector<T> exponentials(Vector<T>* s, int64_t count, T unit) {
  Vector<T> highest = s[0], total = {};
  for (int64_t j = 1; j < count; ++j) highest = highest > s[j] ? highest : s[j];
  highest *= unit;
  for (int64_t j = 0; j < count; ++j) total += s[j] = power_of_two<T>(s[j] * unit - highest);
  return 1 / total;
}

template <class T>
inline void softmax(Vector<T>* s, int64_t count) {
  const Vector<T> inverse = exponentials<T>(s, count, 1.44269504088896340736);
  for (int64_t j = 0; j < count; ++j) s[j] *= inverse;
}

// y_i = W x_i
template <class T>
inline void project(Vector<T>* y, const Vector<T>* x, const T* weight, int64_t rows, int64_t D) {
  for (int64_t i = 0; i < rows; ++i) dots(y + i * D, x + i * D, weight, D, D, D);
}

// dx_i (+)= W^T dy_i
template <bool kAdd, class T>
inline void project_back(Vector<T>* dx, const Vector<T>* dy, const T* weight, int64_t rows, int64_t D) {
  for (int64_t i = 0; i < rows; ++i) combine<kAdd>(dx + i * D, dy + i * D, 1, weight, D, D, D);
}
