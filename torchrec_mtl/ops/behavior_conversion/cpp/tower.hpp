// The feature tower of one task for a group of samples, BPCM eq. (2)-(6).

#pragma once

#include "../../cpp/attention.hpp"

struct Shape {
  int64_t batch, F, D, hidden, tasks, heads;
};

// The weights of one tower, or their gradients, one after the other in this order: rows are outputs.
template <class T>
struct TowerWeights {
  static constexpr int kTensors = 9;
  T *query, *key, *value, *first, *first_bias, *second, *second_bias, *organic, *attended;
};

// x to max(x + bias, 0); NaN stays NaN
template <class T>
inline void add_bias_and_relu(Vector<T>* x, const T* bias, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r, x += columns)
    for (int64_t c = 0; c < columns; ++c) {
      const Vector<T> sum = x[c] + bias[c], zero = sum * 0;  // of a constant GCC 12 makes no maximum instruction
      x[c] = zero > sum ? zero : sum;
    }
}

// d to d where y, the output of the ReLU, is above 0; adds the bias's gradient
template <class T>
inline void relu_back(Vector<T>* d, const Vector<T>* y, T* d_bias, int64_t rows, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) {
    Vector<T> sum = {};
    for (int64_t i = c; i < rows * columns; i += columns) sum += d[i] = y[i] > 0 ? d[i] : Vector<T>{};
    add_lanes<T>(d_bias + c, &sum, 1);
  }
}

template <class T>
inline Vector<T> sigmoid(Vector<T> x) {
  using V = Vector<T>;
  const V negative = (x > 0 ? -x : x) * T(kLog2E);
  const V small = power_of_two<T>(negative, negative * 0 + T(Format<T>::kLowest)), inverse = 1 / (1 + small);
  return x > 0 ? inverse : small * inverse;
}

template <class T>
class Tower {
  using V = Vector<T>;
  const Shape s;
  const TowerWeights<const T> w;
  const int64_t size;
  Attention<T> attention;
  std::vector<V> hidden, organic, attended, share;

 public:
  Tower(const Shape& s, const TowerWeights<const T>& w, bool keep)
      : s(s), w(w), size(s.F * s.D), attention(s.F, s.F, s.D, s.heads, {w.query, w.key, w.value}, keep),
        hidden(s.F * s.hidden), organic(size), attended(size), share(size) {}

  // q [F, D] from x [F, D]
  void forward(const V* x, V* q) {
    const int64_t F = s.F, D = s.D;
    attention.forward(x, x, attended.data());
    project(hidden.data(), x, w.first, F, s.hidden, D);
    add_bias_and_relu(hidden.data(), w.first_bias, F, s.hidden);
    project(organic.data(), hidden.data(), w.second, F, D, s.hidden);
    add_bias_and_relu(organic.data(), w.second_bias, F, D);
    project(share.data(), organic.data(), w.organic, F, D, D);
    project<true>(share.data(), attended.data(), w.attended, F, D, D);
    for (int64_t i = 0; i < size; ++i) {
      share[i] = sigmoid<T>(share[i]);
      q[i] = organic[i] + share[i] * (attended[i] - organic[i]);
    }
  }

  // Memory that the backward passes of all towers share
  struct Space {
    std::vector<V> d_organic, d_share, d_hidden, d_weight;
    typename Attention<T>::Space attention;
    explicit Space(const Shape& s)
        : d_organic(s.F * s.D), d_share(s.F * s.D), d_hidden(s.F * s.hidden),
          d_weight(kLanes<T> * std::max(s.D, s.hidden)), attention(s.F, s.F, s.D) {}
  };

  // Adds to dx and the weights' gradients from the gradient of q, which it overwrites.
  void backward(const V* x, V* dq, V* dx, const TowerWeights<T>& d_w, Space& space) {
    const int64_t F = s.F, D = s.D;
    V *d_organic = space.d_organic.data(), *d_share = space.d_share.data(), *d_hidden = space.d_hidden.data();
    V* d_weight = space.d_weight.data();
    for (int64_t i = 0; i < size; ++i) {
      const V of_share = dq[i] * share[i];
      d_organic[i] = dq[i] - of_share;
      d_share[i] = of_share * (1 - share[i]) * (attended[i] - organic[i]);
      dq[i] = of_share;  // from here on the gradient of `attended`
    }
    add_outer<T>(d_w.organic, d_share, D, organic.data(), D, F, d_weight);
    add_outer<T>(d_w.attended, d_share, D, attended.data(), D, F, d_weight);
    project_back<true>(d_organic, d_share, w.organic, F, D, D);
    project_back<true>(dq, d_share, w.attended, F, D, D);
    relu_back(d_organic, organic.data(), d_w.second_bias, F, D);
    add_outer<T>(d_w.second, d_organic, D, hidden.data(), s.hidden, F, d_weight);
    project_back<false>(d_hidden, d_organic, w.second, F, D, s.hidden);
    relu_back(d_hidden, hidden.data(), d_w.first_bias, F, s.hidden);
    add_outer<T>(d_w.first, d_hidden, s.hidden, x, D, F, d_weight);
    project_back<true>(dx, d_hidden, w.first, F, s.hidden, D);
    attention.backward(x, x, dq, dx, dx, {d_w.query, d_w.key, d_w.value}, space.attention);
  }
};
