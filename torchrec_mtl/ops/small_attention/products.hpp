// What the attention is made of: two products and the softmax, each for the samples of one vector.

#pragma once

#include <cstdint>
#include <type_traits>

#include "lanes.hpp"

constexpr int64_t kColumns = 8;  // at most so many columns are in registers at once

// Calls `f` for columns [c, c + C), C a constant of the compiler's, until all are done.
template <class F>
inline void for_columns(int64_t columns, F f) {
  int64_t c = 0;
  for (; c + kColumns <= columns; c += kColumns) f(std::integral_constant<int, kColumns>(), c);
  switch (columns - c) {
    case 1: return f(std::integral_constant<int, 1>(), c);
    case 2: return f(std::integral_constant<int, 2>(), c);
    case 3: return f(std::integral_constant<int, 3>(), c);
    case 4: return f(std::integral_constant<int, 4>(), c);
    case 5: return f(std::integral_constant<int, 5>(), c);
    case 6: return f(std::integral_constant<int, 6>(), c);
    case 7: return f(std::integral_constant<int, 7>(), c);
  }
}

// s[j] = sum_c q[c] k[j][c]: a vector times rows. The rows, `stride` apart, are vectors, or scalars of all samples.
template <class V, class E>
inline void dots(V* __restrict s, const V* __restrict q, const E* __restrict k, int64_t stride, int64_t rows,
                 int64_t columns) {
  for_columns(columns, [=](auto width, int64_t first) {
    constexpr int C = width;
    V own[C];
    for (int c = 0; c < C; ++c) own[c] = q[first + c];
    const E* row = k + first;
    for (int64_t j = 0; j < rows; ++j, row += stride) {
      V sum = own[0] * row[0];
      for (int c = 1; c < C; ++c) sum += own[c] * row[c];
      s[j] = first ? s[j] + sum : sum;
    }
  });
}

// o[c] (+)= sum_j p[j] v[j][c]: rows weighted and summed; the weights are `p_stride` apart, the rows `v_stride`.
template <bool kAdd, class V, class E>
inline void combine(V* __restrict o, const V* __restrict p, int64_t p_stride, const E* __restrict v, int64_t v_stride,
                    int64_t rows, int64_t columns) {
  for_columns(columns, [=](auto width, int64_t first) {
    constexpr int C = width;
    V sum[C];
    for (int c = 0; c < C; ++c) sum[c] = kAdd ? o[first + c] : V{};
    const V* weight = p;
    const E* row = v + first;
    for (int64_t j = 0; j < rows; ++j, weight += p_stride, row += v_stride)
      for (int c = 0; c < C; ++c) sum[c] += *weight * row[c];
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

// The coefficients of Taylor's series of 2^x.
template <class T>
struct Taylor {
  T coefficient[Format<T>::kTerms + 1] = {1};
  constexpr Taylor() {
    for (int n = 1; n <= Format<T>::kTerms; ++n) coefficient[n] = coefficient[n - 1] * T(0.69314718055994530942) / n;
  }
};

// 2^x to an ulp or two for x <= 0; below the least normal number it is that number. NaN stays NaN.
template <class T>
inline Vector<T> power_of_two(Vector<T> x) {
  using F = Format<T>;
  using Bits = typename F::Bits;
  constexpr Taylor<T> series;
  constexpr T kRound = T(3) * (int64_t(1) << (F::kMantissa - 1));  // adding it leaves the integer in the low bits
  const Vector<T> lowest = T(F::kLowest) + Vector<T>{};
  x = lowest > x ? lowest : x;
  const Vector<T> integer = x + kRound, fraction = x - (integer - kRound);
  Vector<T> sum = series.coefficient[F::kTerms] + Vector<T>{};
#pragma GCC unroll 16
  for (int n = F::kTerms - 1; n >= 0; --n) sum = sum * fraction + series.coefficient[n];
  return (Vector<T>)((Bits)sum + ((Bits)integer << F::kMantissa));
}

template <class T>
inline void softmax(Vector<T>* s, int64_t count) {
  constexpr T kLog2E = 1.44269504088896340736;
  Vector<T> highest = s[0], total = {};
  for (int64_t j = 1; j < count; ++j) highest = highest > s[j] ? highest : s[j];
  highest *= kLog2E;
  for (int64_t j = 0; j < count; ++j) total += s[j] = power_of_two<T>(s[j] * kLog2E - highest);
  const Vector<T> inverse = 1 / total;
  for (int64_t j = 0; j < count; ++j) s[j] *= inverse;
}
