// Multi-head attention between small sets on the CPU, projections included, BPCM eq. (2)-(3).
//
// Each SIMD lane holds one sample: a group of samples is transposed to [rows, columns, lanes], and after that the
// loops are the same as for one sample. So whatever the sizes are, nothing is padded to the vector's width and no sum
// runs across lanes. The backward pass recomputes the attention weights.
//
// N query rows, M input rows, D columns; head j has columns j * D / heads to (j + 1) * D / heads.

#include <vector>

#include "../../cpp/operators.hpp"
#include "../../cpp/products.hpp"

namespace {

struct Shape {
  int64_t batch, N, M, D, heads;
};

// [D, D], rows are outputs
template <class T>
struct Weights {
  const T *query, *key, *value;
};

// dW += sum_i dy_i x_i^T
template <class V>
inline void add_outer(V* d_weight, const V* dy, const V* x, int64_t rows, int64_t D) {
  for (int64_t c = 0; c < D; ++c) combine<true>(d_weight + c * D, dy + c, D, x, D, rows, D);
}

template <class T>
class Forward {
  using V = Vector<T>;
  const Shape s;
  const Weights<T> w;
  std::vector<V> x, y, query, key, value, p;

 public:
  Forward(Shape s, Weights<T> w)
      : s(s), w(w), x(s.N * s.D), y(s.M * s.D), query(s.D), key(s.M * s.D), value(s.M * s.D), p(s.M) {}

  void run(Group<T> group, const T* queries, const T* inputs, T* output) {
    const int64_t D = s.D, width = D / s.heads;
    group.load(x.data(), queries, s.N * D);
    group.load(y.data(), inputs, s.M * D);
    project(key.data(), y.data(), w.key, s.M, D);
    project(value.data(), y.data(), w.value, s.M, D);
    for (V* row = x.data(); row < x.data() + s.N * D; row += D) {
      project(query.data(), row, w.query, 1, D);
      for (int64_t c = 0; c < D; c += width) {
        dots(p.data(), &query[c], &key[c], D, s.M, width);
        softmax<T>(p.data(), s.M);
        combine<false>(row + c, p.data(), 1, &value[c], D, s.M, width);  // in place of the query
      }
    }
    group.store(output, x.data(), s.N * D);
  }
};

template <class T>
class Backward {
  using V = Vector<T>;
  static constexpr int64_t kRows = 40;  // rows of attention weights kept at once
  const Shape s;
  const Weights<T> w;
  const int64_t rows;
  std::vector<V> x, y, upstream, key, value, d_key, d_value, query, d_query, p, d_p, d_weights;

  // For a block of rows: p = softmax(q k^T), dp = do v^T, ds = p (dp - <p, dp>) in place of dp, and dq = ds k.
  void weigh(const V* out, int64_t count, int64_t c, int64_t width) {
    for (int64_t r = 0; r < count; ++r) {
      V *p_row = &p[r * s.M], *d_row = &d_p[r * s.M], mean = {};
      dots(p_row, &query[r * s.D + c], &key[c], s.D, s.M, width);
      softmax<T>(p_row, s.M);
      dots(d_row, out + r * s.D + c, &value[c], s.D, s.M, width);
      for (int64_t j = 0; j < s.M; ++j) mean += p_row[j] * d_row[j];
      for (int64_t j = 0; j < s.M; ++j) d_row[j] = p_row[j] * (d_row[j] - mean);
      combine<false>(&d_query[r * s.D + c], d_row, 1, &key[c], s.D, s.M, width);
    }
  }

 public:
  Backward(Shape s, Weights<T> w)
      : s(s), w(w), rows(std::min(s.N, kRows)), x(s.N * s.D), y(s.M * s.D), upstream(s.N * s.D), key(s.M * s.D),
        value(s.M * s.D), d_key(s.M * s.D), d_value(s.M * s.D), query(rows * s.D), d_query(rows * s.D), p(rows * s.M),
        d_p(rows * s.M), d_weights(3 * s.D * s.D) {}

  void run(Group<T> group, const T* grad, const T* queries, const T* inputs, T* d_queries, T* d_inputs) {
    const int64_t D = s.D, width = D / s.heads;
    V* d_weight = d_weights.data();
    group.load(x.data(), queries, s.N * D);
    group.load(y.data(), inputs, s.M * D);
    group.load(upstream.data(), grad, s.N * D);
    project(key.data(), y.data(), w.key, s.M, D);
    project(value.data(), y.data(), w.value, s.M, D);
    std::fill(d_key.begin(), d_key.end(), V{});
    std::fill(d_value.begin(), d_value.end(), V{});
    for (int64_t i = 0; i < s.N; i += rows) {
      const int64_t count = std::min(rows, s.N - i);
      V *row = &x[i * D], *out = &upstream[i * D];
      project(query.data(), row, w.query, count, D);
      for (int64_t c = 0; c < D; c += width) {
        weigh(out, count, c, width);
        for (int64_t j = 0; j < s.M; ++j) {
          combine<true>(&d_value[j * D + c], &p[j], s.M, out + c, D, count, width);
          combine<true>(&d_key[j * D + c], &d_p[j], s.M, &query[c], D, count, width);
        }
      }
      add_outer(d_weight, d_query.data(), row, count, D);
      project_back<false>(row, d_query.data(), w.query, count, D);  // in place of the queries
    }
    add_outer(d_weight + D * D, d_key.data(), y.data(), s.M, D);
    add_outer(d_weight + 2 * D * D, d_value.data(), y.data(), s.M, D);
    project_back<false>(y.data(), d_key.data(), w.key, s.M, D);
    project_back<true>(y.data(), d_value.data(), w.value, s.M, D);
    group.store(d_queries, x.data(), s.N * D);
    group.store(d_inputs, y.data(), s.M * D);
  }

  // Writes the weights' gradients, summed over the lanes, and resets them.
  void take_d_weights(T* out) {
    for (V& lanes : d_weights) {
      *out = 0;
      for (int lane = 0; lane < kLanes<T>; ++lane) *out += lanes[lane];
      ++out;
      lanes = V{};
    }
  }
};

template <class T>
int64_t num_groups(Shape s) {
  return (s.batch + kLanes<T> - 1) / kLanes<T>;
}

template <class T>
void forward(Shape s, Weights<T> w, const T* queries, const T* inputs, T* output, int threads) {
  const int64_t groups = num_groups<T>(s);
#pragma omp parallel num_threads(std::clamp<int64_t>(groups, 1, threads))
  {
    Forward<T> pass(s, w);
#pragma omp for
    for (int64_t g = 0; g < groups; ++g) pass.run(Group<T>(g, s.batch), queries, inputs, output);
  }
}

// Sums the weights' gradients within parts of the batch, then over the parts: the same for any number of threads.
template <class T>
void backward(Shape s, Weights<T> w, const T* grad, const T* queries, const T* inputs, T* d_queries, T* d_inputs,
              T* d_weights, int threads) {
  const int64_t groups = num_groups<T>(s), parts = std::min<int64_t>(groups, 64), size = 3 * s.D * s.D;
  std::vector<T> partial(parts * size);
#pragma omp parallel num_threads(std::clamp<int64_t>(parts, 1, threads))
  {
    Backward<T> pass(s, w);
#pragma omp for
    for (int64_t part = 0; part < parts; ++part) {
      for (int64_t g = part * groups / parts; g < (part + 1) * groups / parts; ++g)
        pass.run(Group<T>(g, s.batch), grad, queries, inputs, d_queries, d_inputs);
      pass.take_d_weights(&partial[part * size]);
    }
  }
  std::fill(d_weights, d_weights + size, T(0));
  for (int64_t k = 0; k < parts * size; ++k) d_weights[k % size] += partial[k];
}

Shape shape(const Tensor& queries, const Tensor& inputs, const std::vector<Tensor>& weights, int64_t heads) {
  check(queries.dim() == 3 && inputs.dim() == 3, "`queries` and `inputs` must be [B, N, D] and [B, M, D]");
  const Shape s{queries.size(0), queries.size(1), inputs.size(1), queries.size(2), heads};
  check_sizes("inputs", inputs, {s.batch, s.M, s.D});
  check(s.M > 0, "`inputs` (of shape ", text(sizes(inputs)), ") must have at least one row");
  check(heads > 0 && s.D > 0 && s.D % heads == 0, "`num_heads` (=", heads, ") must divide ", s.D);
  for (const Tensor& weight : weights) check_sizes("weight", weight, {s.D, s.D});
  return s;
}

Tensor attention(Tensor queries, Tensor inputs, Tensor query_weight, Tensor key_weight, Tensor value_weight,
                 int64_t num_heads) {
  const Shape s = shape(queries, inputs, {query_weight, key_weight, value_weight}, num_heads);
  const Read read(queries, inputs, query_weight, key_weight, value_weight);
  Tensor output = empty(queries, sizes(queries));
  read.dispatch([&](auto zero) {
    using T = decltype(zero);
    forward<T>(s, {read.at<T>(2), read.at<T>(3), read.at<T>(4)}, read.at<T>(0), read.at<T>(1), written<T>(output),
               num_threads());
  });
  return output;
}

// The gradients of the queries, of the inputs, and of the three weights in one tensor.
std::tuple<Tensor, Tensor, Tensor> attention_backward(Tensor queries, Tensor inputs, Tensor query_weight,
                                                      Tensor key_weight, Tensor value_weight, Tensor upstream,
                                                      int64_t num_heads) {
  const Shape s = shape(queries, inputs, {query_weight, key_weight, value_weight}, num_heads);
  check_sizes("upstream", upstream, sizes(queries));
  const Read read(queries, inputs, query_weight, key_weight, value_weight, upstream);
  Tensor d_queries = empty(queries, sizes(queries)), d_inputs = empty(inputs, sizes(inputs)),
         d_weights = empty(query_weight, {3, s.D, s.D});
  read.dispatch([&](auto zero) {
    using T = decltype(zero);
    backward<T>(s, {read.at<T>(2), read.at<T>(3), read.at<T>(4)}, read.at<T>(5), read.at<T>(0), read.at<T>(1),
                written<T>(d_queries), written<T>(d_inputs), written<T>(d_weights), num_threads());
  });
  return {d_queries, d_inputs, d_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(torchrec_mtl, library) {
  library.def(
      "small_attention(Tensor queries, Tensor inputs, Tensor query_weight, Tensor key_weight, Tensor value_weight, "
      "int num_heads) -> Tensor");
  library.def(
      "small_attention_backward(Tensor queries, Tensor inputs, Tensor query_weight, Tensor key_weight, "
      "Tensor value_weight, Tensor upstream, int num_heads) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(torchrec_mtl, CPU, library) {
  library.impl("small_attention", TORCH_BOX(&attention));
  library.impl("small_attention_backward", TORCH_BOX(&attention_backward));
}
