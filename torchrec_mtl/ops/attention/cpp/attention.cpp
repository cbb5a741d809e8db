// Multi-head attention between small sets on the CPU, projections included, BPCM eq. (2)-(3).
//
// Each SIMD lane holds one sample: a group of samples is transposed to [rows, columns, lanes], and after that the
// loops are the same as for one sample. So whatever the sizes are, nothing is padded to the vector's width and no sum
// runs across lanes. The backward pass recomputes the attention weights.
//
// N query rows, M input rows, D columns; head j has columns j * D / heads to (j + 1) * D / heads.

#include <vector>

#include "../../cpp/attention.hpp"
#include "../../cpp/operators.hpp"

namespace {

struct Shape {
  int64_t batch, N, M, D, heads;
};

template <class T>
class Pass {
  using V = Vector<T>;
  const Shape s;
  Attention<T> attention;
  std::vector<V> x, y, out, dx, dy;
  typename Attention<T>::Space space;

  void load(const Group<T>& group, const T* queries, const T* inputs) {
    group.load(x.data(), queries, s.N * s.D);
    group.load(y.data(), inputs, s.M * s.D);
  }

 public:
  Pass(Shape s, AttentionWeights<const T> w)
      : s(s), attention(s.N, s.M, s.D, s.heads, w, false), x(s.N * s.D), y(s.M * s.D), out(s.N * s.D), dx(s.N * s.D),
        dy(s.M * s.D), space(s.N, s.M, s.D) {}

  void forward(const Group<T>& group, const T* queries, const T* inputs, T* output) {
    load(group, queries, inputs);
    attention.forward(x.data(), y.data(), out.data());
    group.store(output, out.data(), s.N * s.D);
  }

  void backward(const Group<T>& group, const T* grad, const T* queries, const T* inputs, T* d_queries, T* d_inputs,
                AttentionWeights<T> d_weights) {
    load(group, queries, inputs);
    group.load(out.data(), grad, s.N * s.D);
    std::fill(dx.begin(), dx.end(), V{});
    std::fill(dy.begin(), dy.end(), V{});
    attention.project(x.data(), y.data());
    attention.backward(x.data(), y.data(), out.data(), dx.data(), dy.data(), d_weights, space);
    group.store(d_queries, dx.data(), s.N * s.D);
    group.store(d_inputs, dy.data(), s.M * s.D);
  }
};

template <class T>
int64_t num_groups(Shape s) {
  return (s.batch + kLanes<T> - 1) / kLanes<T>;
}

template <class T>
void forward(Shape s, AttentionWeights<const T> w, const T* queries, const T* inputs, T* output, int threads) {
  const int64_t groups = num_groups<T>(s);
#pragma omp parallel num_threads(std::clamp<int64_t>(groups, 1, threads))
  {
    Pass<T> pass(s, w);
#pragma omp for
    for (int64_t g = 0; g < groups; ++g) pass.forward(Group<T>(g, s.batch), queries, inputs, output);
  }
}

// Sums the weights' gradients within parts of the batch, then over the parts: the same for any number of threads.
template <class T>
void backward(Shape s, AttentionWeights<const T> w, const T* grad, const T* queries, const T* inputs, T* d_queries,
              T* d_inputs, T* d_weights, int threads) {
  const int64_t groups = num_groups<T>(s), parts = std::min<int64_t>(groups, 64), size = 3 * s.D * s.D;
  std::vector<T> partial(parts * size);
#pragma omp parallel num_threads(std::clamp<int64_t>(parts, 1, threads))
  {
    Pass<T> pass(s, w);
#pragma omp for
    for (int64_t part = 0; part < parts; ++part) {
      T* d_w = &partial[part * size];
      for (int64_t g = part * groups / parts; g < (part + 1) * groups / parts; ++g)
        pass.backward(Group<T>(g, s.batch), grad, queries, inputs, d_queries, d_inputs,
                      {d_w, d_w + size / 3, d_w + size / 3 * 2});
    }
  }
  std::fill(d_weights, d_weights + size, T(0));
  for (int64_t k = 0; k < parts * size; ++k) d_weights[k % size] += partial[k];
  Attention<T>::unfold(s.D, s.heads, w, {d_weights, d_weights + size / 3, d_weights + size / 3 * 2});
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
