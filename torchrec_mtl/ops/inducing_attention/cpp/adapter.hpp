// The adapter of one task and one layer for a group of samples, TAFE eq. (21)-(22): an indicator attends to R rows.

#pragma once

#include "parts.hpp"

template <class T>
class Adapter {
  using V = Vector<T>;
  const Shape s;
  const int64_t D, width;
  const T scale;
  std::vector<V> query;  // a Wk^T of each head, scaled; the same in every lane
  std::vector<V> p, total, context, value, normal;
  V inverse;

 public:
  Adapter(const Shape& s, const Block<const T>& w)
      : s(s), D(s.D), width(D / s.heads), scale(kLog2E / std::sqrt(T(width))), query(s.heads * D),
        p(s.heads * s.K), total(s.heads), context(s.heads * D), value(D), normal(D) {
    for (int64_t i = 0; i < D; ++i)
      for (int64_t c = 0; c < D; ++c) query[i / width * D + c] += w.queries[i] * w.key[i * D + c] * scale;
  }

  // T^{l-1}, or zero, to T^l in place, from the R rows of y, each of which stands for 2^log_count rows.
  void forward(const Block<const T>& w, const V* y, int64_t R, const V* log_count, V* adapted) {
    for (int64_t head = 0; head < s.heads; ++head) {
      V *weights = &p[head * R], *read = &context[head * D];
      dots(weights, &query[head * D], y, D, R, D);
      for (int64_t r = 0; r < R; ++r) weights[r] += log_count[r];
      total[head] = exponentials<T>(weights, R, 1);
      combine<false>(read, weights, 1, y, D, R, D);
      multiply(read, total[head], D);
      dots(&value[head * width], read, w.value + head * width * D, D, width, D);
    }
    project(normal.data(), value.data(), w.output, 1, D);
    for (int64_t c = 0; c < D; ++c) normal[c] += adapted[c];
    inverse = normalise<T>(normal.data(), D);
    scale_and_shift<T>(adapted, normal.data(), w, D);
  }

  struct Space {
    std::vector<V> d_value, d_context, d_p, d_query, rows;
    std::vector<T> summed;
    explicit Space(const Shape& s)
        : d_value(s.D), d_context(s.D), d_p(s.K), d_query(s.D), rows(s.D), summed(s.D) {}
  };

  // Turns the gradient of T^l into the gradient of T^{l-1} in place, and adds the gradients of the weights and of y.
  void backward(const Block<const T>& w, const Block<T>& d_w, const V* y, int64_t R, V* d_adapted, V* dy,
                Space& space) {
    auto& [d_value, d_context, d_p, d_query, rows, summed] = space;
    norm_back<T>(d_adapted, normal.data(), &inverse, w, d_w, 1, D);
    add_outer<T>(d_w.output, d_adapted, D, value.data(), D, rows.data());
    project_back<false>(d_value.data(), d_adapted, w.output, 1, D);
    for (int64_t head = 0, c = 0; head < s.heads; ++head, c += width) {
      const V *q = &query[head * D], *weights = &p[head * R];
      add_outer<T>(d_w.value + c * D, &d_value[c], width, &context[head * D], D, rows.data());
      combine<false>(d_context.data(), &d_value[c], 1, w.value + c * D, D, width, D);
      multiply(d_context.data(), total[head], D);
      dots(d_p.data(), d_context.data(), y, D, R, D);
      softmax_back(d_p.data(), weights, total[head], R);
      combine<false>(d_query.data(), d_p.data(), 1, y, D, R, D);
      for (int64_t r = 0; r < R; ++r) {
        const V d = d_p[r] * T(1 / kLog2E);
        for (int64_t i = 0; i < D; ++i) dy[r * D + i] += weights[r] * d_context[i] + d * q[i];
      }
      unfold(w, d_w, c, d_query.data(), summed);
    }
  }

 private:
  // Adds to the gradients of the indicator and of Wk, from the gradient of a head's query, a Wk^T.
  void unfold(const Block<const T>& w, const Block<T>& d_w, int64_t first, const V* d_query, std::vector<T>& d) {
    std::fill(d.begin(), d.end(), T(0));
    add_lanes<T>(d.data(), d_query, D);
    for (int64_t i = first; i < first + width; ++i)
      for (int64_t c = 0; c < D; ++c) {
        d_w.queries[i] += w.key[i * D + c] * d[c] * (scale / T(kLog2E));
        d_w.key[i * D + c] += w.queries[i] * d[c] * (scale / T(kLog2E));
      }
  }
};
