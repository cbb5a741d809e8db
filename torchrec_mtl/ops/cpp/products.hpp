// The parts of attention, each for the samples in one vector: products of small matrices, and the softmax.

#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <type_traits>
#include <utility>

#include "lanes.hpp"

// A matrix whose elements are vectors, or scalars that all samples share.
template <class E>
struct Matrix {
  E* at;
  int64_t row, column = 1;  // how far apart rows, and columns, are

  Matrix transposed() const { return {at, column, row}; }
  Matrix from(int64_t r) const { return {at + r * row, row, column}; }
  operator Matrix<const E>() const { return {at, row, column}; }
};

// Sums in registers at once: the more, the fewer loads for each multiplication.
#if defined(__AVX512F__)
constexpr int kTileRows = 4, kTileColumns = 6;
#else
constexpr int kTileRows = 3, kTileColumns = 4;
#endif
constexpr int kRowColumns = 12;  // of a product that has one row

// Calls f(first, size) for parts of `count`, as equal as possible; the compiler knows each size, at most kMost.
template <int kMost, class F>
inline void for_parts(int64_t count, F f) {
  const int64_t parts = (count + kMost - 1) / kMost;
  if (!parts) return;
  const int64_t size = count / parts, larger = count % parts;
  for (int64_t part = 0, first = 0; part < parts; ++part) {
    const int64_t next = first + size + (part < larger);
    [&]<int... I>(std::integer_sequence<int, I...>) {
      (void)((next - first == I + 1 && (f(first, std::integral_constant<int, I + 1>()), true)) || ...);
    }(std::make_integer_sequence<int, kMost>());
    first = next;
  }
}

template <bool kAdd, int R, int C, class V, class A, class B>
inline void tile(V* out, int64_t out_row, int64_t out_column, const A* a, int64_t a_row, int64_t a_column, const B* b,
                 int64_t b_row, int64_t b_column, int64_t inner) {
  V sum[R][C];
#pragma GCC unroll 12  // otherwise `sum` leaves the registers
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 12
    for (int c = 0; c < C; ++c) sum[r][c] = kAdd ? out[r * out_row + c * out_column] : V{};
  for (int64_t k = 0; k < inner; ++k, a += a_column, b += b_row) {
#pragma GCC unroll 12
    for (int c = 0; c < C; ++c)
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) sum[r][c] += a[r * a_row] * b[c * b_column];
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 12
    for (int c = 0; c < C; ++c) out[r * out_row + c * out_column] = sum[r][c];
}

// out [rows, columns] (+)= a [rows, inner] b [inner, columns]
template <class A, class B, bool kAdd = false, class V>
[[gnu::noinline]] void product(Matrix<V> out, Matrix<const A> a, Matrix<const B> b, int64_t rows, int64_t inner,
                               int64_t columns) {
  const auto part = [&](int64_t r, auto height, int64_t c, auto width) {
    tile<kAdd, height, width>(out.at + r * out.row + c * out.column, out.row, out.column, a.at + r * a.row, a.row,
                              a.column, b.at + c * b.column, b.row, b.column, inner);
  };
  constexpr std::integral_constant<int, 1> one;
  if (rows == 1) return for_parts<kRowColumns>(columns, [&](int64_t c, auto width) { part(0, one, c, width); });
  for_parts<kTileColumns>(columns, [&](int64_t c, auto width) {
    for_parts<kTileRows>(rows, [&](int64_t r, auto height) { part(r, height, c, width); });
  });
}

// Of a floating-point type; kPower is the polynomial of its degree whose relative error to 2^x on [-1/2, 1/2] is least.
template <class T>
struct Format;
template <>
struct Format<float> {
  typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 23, kLowest = -126;
  static constexpr float kPower[] = {1.0000000717F,   0.69314696707F,   0.24022119724F,
                                     0.055507132729F, 0.0096755413310F, 0.0013276472168F};
};
template <>
struct Format<double> {
  typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
  static constexpr int kMantissa = 52, kLowest = -1022;
  static constexpr double kPower[] = {1.0,
                                      0.69314718055994533,
                                      0.24022650695910156,
                                      0.055504108664821920,
                                      0.0096181291075883351,
                                      0.0013333558146789950,
                                      0.00015403530462514613,
                                      1.5252733529960805e-5,
                                      1.3215433089594629e-6,
                                      1.0178198033328328e-7,
                                      7.0741056262456594e-9,
                                      4.4352809446103362e-10};
};

constexpr double kLog2E = 1.44269504088896340736;

// 2^x to two ulps for `lowest` <= x <= 0, and 2^lowest below. NaN stays NaN.
template <class T>
inline Vector<T> power_of_two(Vector<T> x, Vector<T> lowest) {
  using F = Format<T>;
  using Bits = typename F::Bits;
  constexpr int kDegree = std::size(F::kPower) - 1;
  constexpr T kRound = T(3) * (int64_t(1) << (F::kMantissa - 1));  // adding it puts the integer into the low bits
  x = lowest > x ? lowest : x;
  const Vector<T> integer = x + kRound, fraction = x - (integer - kRound);
  Vector<T> sum = F::kPower[kDegree] + Vector<T>{};
#pragma GCC unroll 16
  for (int n = kDegree - 1; n >= 0; --n) sum = sum * fraction + F::kPower[n];
  return (Vector<T>)((Bits)sum + ((Bits)integer << F::kMantissa));
}

// Rows of scores, which are base-2 logarithms, plus the bias of each column if there is one, to exponentials
// 2^(s - highest); `inverse` to 1 / the sum of each row.
template <class T>
inline void exponentials(Matrix<Vector<T>> scores, int64_t rows, int64_t columns, const Vector<T>* bias,
                         Vector<T>* inverse) {
  using V = Vector<T>;
  for (int64_t r = 0; r < rows; ++r) {  // first of all rows, so that no row waits for its maximum
    V *s = scores.from(r).at, highest = bias ? s[0] + bias[0] : s[0];
    if (bias)
#pragma GCC unroll 4
      for (int64_t j = 0; j < columns; ++j) s[j] += bias[j], highest = highest > s[j] ? highest : s[j];
    else
#pragma GCC unroll 4
      for (int64_t j = 1; j < columns; ++j) highest = highest > s[j] ? highest : s[j];
    inverse[r] = highest;
  }
  for (int64_t r = 0; r < rows; ++r) {
    V *s = scores.from(r).at, total = {};
    const V highest = inverse[r];
    const V lowest = highest * 0 + T(Format<T>::kLowest);  // of a constant GCC 12 makes no maximum instruction
#pragma GCC unroll 4
    for (int64_t j = 0; j < columns; ++j) total += s[j] = power_of_two<T>(s[j] - highest, lowest);
    inverse[r] = 1 / total;
  }
}

// sum_c x(c), in four sums that do not wait for each other
template <class V, class X>
inline V sum(int64_t count, X x) {
  V part[4] = {};
  int64_t c = 0;
  for (; c + 4 <= count; c += 4)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) part[i] += x(c + i);
  for (; c < count; ++c) part[0] += x(c);
  return part[0] + part[1] + (part[2] + part[3]);
}

// The softmax backwards. Attention weights are kept as exponentials e, with p = e * inverse. In place, from d =
// inverse * dp to ds = p (dp - <p, dp>).
template <class V>
inline void softmax_back(V* d, const V* e, V inverse, int64_t count) {
  const V mean = inverse * sum<V>(count, [=](int64_t j) { return e[j] * d[j]; });
#pragma GCC unroll 4
  for (int64_t j = 0; j < count; ++j) d[j] = e[j] * (d[j] - mean);
}

// sum += the rows of x
template <class V>
inline void add_rows(V* sum, Matrix<V> x, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < columns; ++j) sum[j] += x.from(r).at[j];
}

template <class V>
inline void multiply(V* x, V factor, int64_t count) {
  for (int64_t c = 0; c < count; ++c) x[c] *= factor;
}

// y_i (+)= W x_i, for W [outputs, inputs]
template <bool kAdd = false, class T>
inline void project(Vector<T>* y, const Vector<T>* x, const T* weight, int64_t rows, int64_t outputs, int64_t inputs) {
  using V = Vector<T>;
  product<V, T, kAdd>(Matrix<V>{y, outputs}, Matrix<const V>{x, inputs}, Matrix<const T>{weight, inputs}.transposed(),
                      rows, inputs, outputs);
}

// dx_i (+)= W^T dy_i
template <bool kAdd, class T>
inline void project_back(Vector<T>* dx, const Vector<T>* dy, const T* weight, int64_t rows, int64_t outputs,
                         int64_t inputs) {
  using V = Vector<T>;
  product<V, T, kAdd>(Matrix<V>{dx, inputs}, Matrix<const V>{dy, outputs}, Matrix<const T>{weight, inputs}, rows,
                      outputs, inputs);
}

// dW [outputs, inputs] += sum_i dy_i x_i^T over the rows and lanes; `space` holds `kLanes * inputs` vectors
template <class T>
inline void add_outer(T* d_weight, const Vector<T>* dy, int64_t outputs, const Vector<T>* x, int64_t inputs,
                      int64_t rows, Vector<T>* space) {
  using V = Vector<T>;
  for (int64_t first = 0; first < outputs; first += kLanes<T>) {
    const int64_t count = std::min<int64_t>(kLanes<T>, outputs - first);
    product<V, V>(Matrix<V>{space, inputs}, Matrix<const V>{dy + first, 1, outputs}, Matrix<const V>{x, inputs}, count,
                  rows, inputs);
    add_lanes<T>(d_weight + first * inputs, space, count * inputs);
  }
}
