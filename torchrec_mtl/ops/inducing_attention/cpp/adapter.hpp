// The adapters of all tasks in one layer for a group of samples, TAFE eq. (21)-(22): indicators attend to R rows.

#pragma once

#include "parts.hpp"

template <class T>
class Adapters {
  using V = Vector<T>;
  const Shape s;
  const int64_t D, width, count;  // of the heads of all tasks
  const T scale;
  std::vector<T> query;  // a Wk^T of each head, scaled; the same for all samples
  std::vector<V> p, total, context, value, normal, inverse;

 public:
  Adapters(const Shape& s, const Stack<const T>& weights, int64_t layer)
      : s(s), D(s.D), width(D / s.heads), count(s.tasks * s.heads), scale(kLog2E / std::sqrt(T(width))),
        query(count * D), p(count * s.K), total(count), context(count * D), value(s.tasks * D), normal(s.tasks * D),
        inverse(s.tasks) {
    for (int64_t t = 0; t < s.tasks; ++t) {
      const Block<const T> w = weights.adapter(s, layer, t);
      for (int64_t i = 0; i < D; ++i)
        for (int64_t c = 0; c < D; ++c)
          query[(t * s.heads + i / width) * D + c] += w.queries[i] * w.key[i * D + c] * scale;
    }
  }

  // T^{l-1}, or zero, to T^l in place, from the rows of y.
  void forward(const Stack<const T>& all, int64_t layer, const V* y, const Plan<T>& plan, V* adapted) {
    const int64_t R = plan.rows;
    const Matrix<V> scores{p.data(), R}, read{context.data(), D};
    const Matrix<const V> rows{y, D};
    product<T, V>(scores, Matrix<const T>{query.data(), D}, rows.transposed(), count, D, R);
    exponentials<T>(scores, count, R, plan.log_count.data(), total.data());
    multiply(total.data(), plan.some, count);
    product<V, V>(read, scores, rows, count, R, D);
    for (int64_t head = 0; head < count; ++head) multiply(&context[head * D], total[head], D);
    for (int64_t t = 0; t < s.tasks; ++t, adapted += D) {
      const Block<const T> w = all.adapter(s, layer, t);
      V *own = &value[t * D], *out = &normal[t * D];
      for (int64_t head = 0, c = 0; head < s.heads; ++head, c += width)
        project(own + c, read.from(t * s.heads + head).at, w.value + c * D, 1, width, D);
      project(out, own, w.output, 1, D, D);
      for (int64_t c = 0; c < D; ++c) out[c] += adapted[c];
      inverse[t] = normalise<T>(out, D);
      scale_and_shift<T>(adapted, out, w, D);
    }
  }

  struct Space {
    std::vector<V> d_value, d_context, d_p, d_query, rows, d_bias;
    std::vector<T> summed;
    explicit Space(const Shape& s)
        : d_value(s.D), d_context(s.tasks * s.heads * s.D), d_p(s.tasks * s.heads * s.K),
          d_query(s.tasks * s.heads * s.D), rows(s.D), d_bias(s.K),
          summed(s.D) {}
  };

  // Turns the gradient of T^l into the gradient of T^{l-1} in place, and adds the gradients of the weights, of y, and of
  // z where it masks.
  void backward(const Stack<const T>& all, const Stack<T>& d_all, int64_t layer, const V* y, const Plan<T>& plan,
                V* d_adapted, V* dy, V* d_z, Space& space) {
    const int64_t R = plan.rows;
    auto& [d_value, d_context, d_p, d_query, rows, d_bias, summed] = space;
    for (int64_t t = 0; t < s.tasks; ++t, d_adapted += D) {
      const Block<const T> w = all.adapter(s, layer, t);
      const Block<T> d_w = d_all.adapter(s, layer, t);
      norm_back<T>(d_adapted, &normal[t * D], &inverse[t], w, d_w, 1, D);
      add_outer<T>(d_w.output, d_adapted, D, &value[t * D], D, rows.data());
      project_back<false>(d_value.data(), d_adapted, w.output, 1, D, D);
      for (int64_t head = t * s.heads, c = 0; c < D; ++head, c += width) {
        V* d = &d_context[head * D];
        add_outer<T>(d_w.value + c * D, &d_value[c], width, &context[head * D], D, rows.data());
        project_back<false>(d, &d_value[c], w.value + c * D, 1, width, D);
        multiply(d, total[head], D);
      }
    }
    const Matrix<V> d{d_p.data(), R}, d_read{d_context.data(), D}, d_rows{dy, D}, d_queries{d_query.data(), D};
    const Matrix<const V> inputs{y, D}, e{p.data(), R};
    product<V, V>(d, d_read, inputs.transposed(), count, D, R);
    for (int64_t head = 0; head < count; ++head) softmax_back(&d_p[head * R], &p[head * R], total[head], R);
    if (s.masked) {
      std::fill_n(d_bias.begin(), R, V{});
      add_rows(d_bias.data(), d, count, R);
      plan.add_of_logarithms(d_z, d_bias.data());
    }
    product<V, V>(d_queries, d, inputs, count, R, D);
    product<V, V, true>(d_rows, e.transposed(), d_read, R, count, D);
    for (V& x : d_p) x *= T(1 / kLog2E);
    product<V, T, true>(d_rows, d.transposed(), Matrix<const T>{query.data(), D}, R, count, D);
    for (int64_t head = 0; head < count; ++head)
      unfold(all.adapter(s, layer, head / s.heads), d_all.adapter(s, layer, head / s.heads), head % s.heads * width,
             &d_query[head * D], summed);
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
