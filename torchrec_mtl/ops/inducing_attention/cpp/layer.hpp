// One layer of ASRG for a group of samples, TAFE eq. (17)-(20): R rows attend to N rows of inputs.

#pragma once

#include "parts.hpp"

template <class T>
class Layer {
  using V = Vector<T>;
  const Shape s;
  const bool keep;  // whether to keep what the backward pass needs
  const int64_t D, width;
  const T scale;  // of the queries; it makes scores base-2 logarithms, as the exponential needs them
  std::vector<V> key, value, point, query, p, total, context, normal, inverse;  // total: 1 / the sum of p

  Head<T> head(int64_t i, int64_t R, int64_t N, const V* bias, const V* some) {
    const int64_t c = i * width;
    V* weights = &p[keep ? i * R * (N | 1) : 0];
    return {R, N, width, &query[c], &key[c], &value[c], D, bias, some, weights, &total[i * R], keep};
  }

 public:
  std::vector<V> x;  // the inputs [N, D]

  Layer(const Shape& s, int64_t inputs, bool keep)
      : s(s), keep(keep), D(s.D), width(D / s.heads), scale(kLog2E / std::sqrt(T(width))), key(inputs * D),
        value(inputs * D), point(s.K * D), query(s.K * D), p((keep ? s.K * s.heads : Head<T>::kBlock) * (inputs | 1)),
        total(s.K * s.heads), context(s.K * D), normal(s.K * D), inverse(s.K), x(inputs * D) {}

  // Writes y [R, D] for the N inputs in x: the fields, or the `planned` rows of the layer before.
  void forward(const Block<const T>& w, const Plan<T>& plan, int64_t present, int64_t N, bool planned,
               int64_t residual, V* y) {
    const V *bias = planned ? plan.log_count.data() : nullptr, *some = planned ? &plan.some : nullptr;
    project(key.data(), x.data(), w.key, N, D, D);
    project(value.data(), x.data(), w.value, N, D, D);
    for (int64_t r = 0; r < plan.rows; ++r) {
      const int64_t row = r * D;
      plan.at(w.queries, r, D, present).load(&point[row], D);
      for (int64_t c = 0; c < D; ++c) query[row + c] = point[row + c] * (plan.z[r] * scale);
    }
    for (int64_t i = 0; i < s.heads; ++i) head(i, plan.rows, N, bias, some).forward(&context[i * width]);
    project(normal.data(), context.data(), w.output, plan.rows, D, D);
    for (int64_t r = 0; r < plan.rows; ++r) {
      const int64_t row = r * D;
      V* out = &normal[row];
      if (residual == kInput)
        for (int64_t c = 0; c < D; ++c) out[c] += x[row + c];
      if (residual == kQuery)
        for (int64_t c = 0; c < D; ++c) out[c] += point[row + c] * plan.z[r];
      inverse[r] = normalise<T>(out, D);
      scale_and_shift<T>(y + row, out, w, D);
    }
  }

  // Memory that the backward passes of all layers share
  struct Space {
    std::vector<V> d_context, d_query, d_key, d_value, d_p, d_weight, d_bias;
    Space(const Shape& s, int64_t inputs)
        : d_context(s.K * s.D), d_query(s.K * s.D), d_key(inputs * s.D), d_value(inputs * s.D),
          d_p(Head<T>::kBlock * (inputs | 1)), d_weight(kLanes<T> * s.D), d_bias(inputs) {}
  };

  // Turns dy [R, D] into dx [N, D] in place, and adds the gradients of the weights and of z.
  void backward(const Block<const T>& w, const Block<T>& d_w, const Plan<T>& plan, int64_t present, int64_t N,
                bool planned, int64_t residual, V* dy, V* d_z, Space& space) {
    const int64_t R = plan.rows;
    auto& [d_context, d_query, d_key, d_value, d_p, d_weight, d_bias] = space;
    const bool masks = planned && s.masked;
    norm_back<T>(dy, normal.data(), inverse.data(), w, d_w, R, D);
    add_outer<T>(d_w.output, dy, D, context.data(), D, R, d_weight.data());
    project_back<false>(d_context.data(), dy, w.output, R, D, D);
    std::fill_n(d_key.begin(), N * D, V{});
    std::fill_n(d_value.begin(), N * D, V{});
    std::fill_n(d_bias.begin(), N, V{});
    for (int64_t i = 0, c = 0; i < s.heads; ++i, c += width)
      head(i, R, N, nullptr, nullptr)
          .backward(&d_context[c], &d_query[c], &d_key[c], &d_value[c], d_p.data(), masks ? d_bias.data() : nullptr);
    if (masks) plan.add_of_logarithms(d_z, d_bias.data());
    for (int64_t i = 0; i < N * D; ++i) d_key[i] *= T(1 / kLog2E);
    add_outer<T>(d_w.key, d_key.data(), D, x.data(), D, N, d_weight.data());
    add_outer<T>(d_w.value, d_value.data(), D, x.data(), D, N, d_weight.data());
    for (int64_t r = 0; r < R; ++r) {
      V* d = &d_query[r * D];
      for (int64_t c = 0; c < D; ++c) {
        d[c] *= scale / T(kLog2E);
        if (residual == kQuery) d[c] += dy[r * D + c];
        d_z[r] += d[c] * point[r * D + c];
        d[c] *= plan.z[r];
      }
      plan.at(d_w.queries, r, D, present).template store<true>(d, D);
    }
    if (residual == kInput)
      project_back<true>(dy, d_key.data(), w.key, N, D, D);
    else
      project_back<false>(dy, d_key.data(), w.key, N, D, D);
    project_back<true>(dy, d_value.data(), w.value, N, D, D);
  }
};
