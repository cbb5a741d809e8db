// Shared by the layers of the inducing-point stack and the task adapters: shapes, weights, rows, LayerNorm.

#pragma once

#include <cmath>
#include <vector>

#include "../../cpp/attention.hpp"

struct Shape {
  int64_t batch, F, D, K, layers, tasks, heads, residual, gated, masked;
};
enum Residual { kNone, kQuery, kInput };

// The weights of one layer, or of one task in an adapter; or their gradients.
template <class T>
struct Block {
  T *queries, *key, *value, *output, *norm_weight, *norm_bias;
};

// All weights, or their gradients: six tensors of the generator, then six of the adapters, each with all layers.
template <class T>
struct Stack {
  static constexpr int kTensors = 12;
  T* tensor[kTensors];

  static int64_t size(const Shape& s, int tensor) {
    const int64_t blocks = tensor < 6 ? s.layers : s.layers * s.tasks, part = tensor % 6;
    return blocks * (part == 0 && tensor < 6 ? s.K * s.D : part >= 1 && part <= 3 ? s.D * s.D : s.D);
  }
  static int64_t size(const Shape& s) {
    int64_t sum = 0;
    for (int i = 0; i < kTensors; ++i) sum += size(s, i);
    return sum;
  }
  // a stack whose tensors lie one after the other from `start`
  static Stack at(const Shape& s, T* start) {
    Stack stack;
    for (int i = 0; i < kTensors; start += size(s, i++)) stack.tensor[i] = start;
    return stack;
  }
  Block<T> layer(const Shape& s, int64_t l) const { return block(tensor, l, s.K, s.D); }
  Block<T> adapter(const Shape& s, int64_t l, int64_t t) const { return block(tensor + 6, l * s.tasks + t, 1, s.D); }

 private:
  static Block<T> block(T* const* x, int64_t i, int64_t queries, int64_t D) {
    const int64_t square = i * D * D, row = i * D;
    return {x[0] + row * queries, x[1] + square, x[2] + square, x[3] + square, x[4] + row, x[5] + row};
  }
};

// The rows kept of each sample in a group: its selected points, then some of the others. These stand for all of the
// others, or take no part as keys where z masks.
template <class T>
class Plan {
  using V = Vector<T>;
  static constexpr T kNone = T(-1e30);  // the logarithm of 0 that has no infinity minus infinity
  int64_t K;
  bool masked;
  std::vector<int64_t> point;  // [K, lanes]

 public:
  int64_t rows = 0, active[kLanes<T>];
  // by row: the point's z, and what its score as a key gets: the base-2 logarithm of the rows that it stands for, or of z
  std::vector<V> z, log_count;
  V some = {};  // 0 where a sample attends to no row, as it selects none, and 1 elsewhere

  explicit Plan(const Shape& s) : K(s.K), masked(s.masked), point(s.K * kLanes<T>), z(s.K), log_count(s.K) {}

  static int64_t count_active(const T* selection, int64_t K) {
    return K - std::count(selection, selection + K, T(0));
  }

  void make(const Rows<const T>& selection, bool gated) {
    std::fill(point.begin(), point.end(), 0);
    std::fill(z.begin(), z.end(), V{});
    int64_t most = 0;
    for (int64_t lane = 0; lane < selection.present; ++lane) {
      const T* z_of_sample = selection.row[lane];
      int64_t next = 0, last = active[lane] = count_active(z_of_sample, K);
      most = std::max(most, last);
      for (int64_t k = 0; k < K; ++k) {
        const bool selected = z_of_sample[k] != 0;
        const int64_t row = selected ? next : last;  // without a branch that cannot be predicted
        next += selected, last += !selected;
        point[row * kLanes<T> + lane] = k;
        z[row][lane] = z_of_sample[k];
      }
    }
    rows = gated ? std::clamp<int64_t>(most + !masked, 1, K) : K;
    V last = {}, share = {};  // of each sample
    for (int64_t lane = 0; lane < kLanes<T>; ++lane) some[lane] = !masked || (lane < selection.present && active[lane]);
    for (int64_t lane = 0; lane < selection.present; ++lane) {
      last[lane] = T(active[lane]);
      share[lane] = masked ? kNone : rows > active[lane] ? std::log2(T(K - active[lane]) / T(rows - active[lane])) : T(0);
    }
    for (int64_t row = 0; row < rows; ++row) {
      V logarithm = {};
      for (int64_t lane = 0; masked && lane < selection.present; ++lane) logarithm[lane] = std::log2(z[row][lane]);
      log_count[row] = T(row) + V{} < last ? logarithm : share;
    }
  }

  // of a [K, D] array, the point of each sample that is kept as `row`
  template <class E>
  Rows<E> at(E* points, int64_t row, int64_t D, int64_t present) const {
    Rows<E> rows = {{}, present};
    for (int64_t lane = 0; lane < present; ++lane) rows.row[lane] = points + point[row * kLanes<T> + lane] * D;
    return rows;
  }

  // Adds the gradients of z from those of log z, by row.
  void add_of_logarithms(V* d_z, const V* d) const {
    for (int64_t row = 0; row < rows; ++row) d_z[row] += d[row] / (z[row] == V{} ? V{} + 1 : z[row]);
  }

  // Writes the gradients of z from rows back to points; where z is 0, and `gated`, the gradient is 0.
  void store(const Rows<T>& d_selection, const V* d_z, bool gated) const {
    for (int64_t lane = 0; lane < d_selection.present; ++lane) {
      std::fill(d_selection.row[lane], d_selection.row[lane] + K, T(0));
      for (int64_t row = 0; row < (gated ? active[lane] : rows); ++row)
        d_selection.row[lane][point[row * kLanes<T> + lane]] = d_z[row][lane];
    }
  }
};

// x to (x - mean) / deviation; returns 1 / deviation
template <class T>
inline Vector<T> normalise(Vector<T>* x, int64_t D) {
  using V = Vector<T>;
  const V mean = sum<V>(D, [=](int64_t c) { return x[c]; }) / T(D);
  for (int64_t c = 0; c < D; ++c) x[c] -= mean;
  V deviation = sum<V>(D, [=](int64_t c) { return x[c] * x[c]; }) / T(D) + T(1e-5);
  for (int lane = 0; lane < kLanes<T>; ++lane) deviation[lane] = std::sqrt(deviation[lane]);
  const V inverse = 1 / deviation;
  multiply(x, inverse, D);
  return inverse;
}

// y = x * weight + bias
template <class T>
inline void scale_and_shift(Vector<T>* y, const Vector<T>* x, const Block<const T>& w, int64_t D) {
  for (int64_t c = 0; c < D; ++c) y[c] = x[c] * w.norm_weight[c] + w.norm_bias[c];
}

// LayerNorm of `rows` backwards: dy to dx in place; adds the gradients of weight and bias
template <class T>
inline void norm_back(Vector<T>* d, const Vector<T>* normal, const Vector<T>* inverse, const Block<const T>& w,
                      const Block<T>& d_w, int64_t rows, int64_t D) {
  using V = Vector<T>;
  for (int64_t c = 0; c < D; ++c) {
    Vector<T> sums[2] = {};
    for (int64_t i = c; i < rows * D; i += D) sums[0] += d[i] * normal[i], sums[1] += d[i];
    add_lanes<T>(d_w.norm_weight + c, &sums[0], 1);
    add_lanes<T>(d_w.norm_bias + c, &sums[1], 1);
  }
  for (int64_t r = 0; r < rows; ++r, d += D, normal += D) {
    Vector<T> mean = {}, along = {};
    for (int64_t c = 0; c < D; ++c) d[c] *= w.norm_weight[c], mean += d[c], along += d[c] * normal[c];
    mean /= T(D), along /= T(D);
    for (int64_t c = 0; c < D; ++c) d[c] = (d[c] - mean - normal[c] * along) * inverse[r];
  }
}

// As `add_outer`, for one row: sums the samples directly, vectorised over the columns of dW
template <class T>
inline void add_outer(T* __restrict d_weight, const Vector<T>* dy, int64_t outputs, const Vector<T>* x, int64_t inputs,
                      Vector<T>* space) {
  constexpr int64_t W = kLanes<T>;
  T* __restrict rows = reinterpret_cast<T*>(space);
  Rows<T> of_lanes = {{}, W};
  for (int64_t lane = 0; lane < W; ++lane) of_lanes.row[lane] = rows + lane * inputs;
  of_lanes.store(x, inputs);
  for (int64_t i = 0; i < outputs; ++i, d_weight += inputs)
    for (int64_t c = 0; c < inputs; ++c) {
      T sum = d_weight[c];
      for (int64_t lane = 0; lane < W; ++lane) sum += dy[i][lane] * rows[lane * inputs + c];
      d_weight[c] = sum;
    }
}
