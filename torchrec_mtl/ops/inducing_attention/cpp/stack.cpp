// TAFE's stack on the CPU, eq. (17)-(22): ASRG's layers with one selection, and the task adapters.
//
// As in attention.cpp, each SIMD lane holds one sample. A sample's rows with z = 0 are identical: a few of them are
// kept and stand for all. Samples that keep about the same number of rows are grouped. The backward pass recomputes
// the forward pass.

#include <numeric>

#include "../../cpp/operators.hpp"
#include "adapter.hpp"
#include "layer.hpp"

namespace {

template <class T>
struct Arguments {
  Shape s;
  const T *inputs, *selection;
  Stack<const T> weights;
  std::vector<int64_t> order;  // of the samples: those that keep the most rows first

  Arguments(const Shape& s, const T* const* read) : s(s), inputs(read[0]), selection(read[1]), order(s.batch) {
    std::copy(read + 2, read + 2 + Stack<T>::kTensors, weights.tensor);
    std::iota(order.begin(), order.end(), 0);
    if (!s.gated) return;
    std::vector<int64_t> active(s.batch);
    for (int64_t b = 0; b < s.batch; ++b) active[b] = Plan<T>::count_active(selection + b * s.K, s.K);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return active[a] > active[b]; });
  }
  int64_t num_groups() const { return (s.batch + kLanes<T> - 1) / kLanes<T>; }
  Group<T> group(int64_t g) const { return Group<T>(g, s.batch, order.data()); }
  int64_t residual(int64_t layer) const { return s.residual == kInput && !layer ? int64_t(kQuery) : s.residual; }
};

// One group through the stack, forward and backward; the forward pass keeps what the backward pass needs.
template <class T>
class Pass {
  using V = Vector<T>;
  const Arguments<T>& a;
  const Shape& s;
  Plan<T> plan;
  std::vector<Layer<T>> layers;
  std::vector<Adapters<T>> adapters;
  std::vector<V> last, adapted, d_y, d_z;
  typename Layer<T>::Space layer_space;
  typename Adapters<T>::Space adapter_space;

  V* output(int64_t l) { return l + 1 < s.layers ? layers[l + 1].x.data() : last.data(); }

 public:
  Pass(const Arguments<T>& a, bool keep)
      : a(a), s(a.s), plan(s), last(s.K * s.D), adapted(s.tasks * s.D), d_y(std::max(s.F, s.K) * s.D), d_z(s.K),
        layer_space(s, std::max(s.F, s.K)), adapter_space(s) {
    for (int64_t l = 0; l < s.layers; ++l) {
      layers.emplace_back(s, l ? s.K : s.F, keep);
      adapters.emplace_back(s, a.weights, l);
    }
  }

  const V* forward(const Group<T>& group) {
    plan.make(group.rows(a.selection, s.K), s.gated);
    group.load(layers[0].x.data(), a.inputs, s.F * s.D);
    std::fill(adapted.begin(), adapted.end(), V{});
    for (int64_t l = 0; l < s.layers; ++l) {
      layers[l].forward(a.weights.layer(s, l), plan, group.present, l ? plan.rows : s.F, l, a.residual(l), output(l));
      adapters[l].forward(a.weights, l, output(l), plan, adapted.data());
    }
    return adapted.data();
  }

  void backward(const Group<T>& group, const T* upstream, const Stack<T>& d_weights, T* d_inputs, T* d_selection) {
    forward(group);
    group.load(adapted.data(), upstream, s.tasks * s.D);  // from here on the gradient of T^l
    std::fill(d_y.begin(), d_y.end(), V{});
    std::fill(d_z.begin(), d_z.end(), V{});
    for (int64_t l = s.layers - 1; l >= 0; --l) {
      adapters[l].backward(a.weights, d_weights, l, output(l), plan, adapted.data(), d_y.data(), d_z.data(),
                           adapter_space);
      layers[l].backward(a.weights.layer(s, l), d_weights.layer(s, l), plan, group.present, l ? plan.rows : s.F,
                         l, a.residual(l), d_y.data(), d_z.data(), layer_space);
    }
    group.store(d_inputs, d_y.data(), s.F * s.D);
    plan.store(group.rows(d_selection, s.K), d_z.data(), s.gated);
  }
};

template <class T>
void forward(const Shape& shape, const T* const* read, T* output, int threads) {
  const Arguments<T> a(shape, read);
  const int64_t groups = a.num_groups();
#pragma omp parallel num_threads(std::clamp<int64_t>(groups, 1, threads))
  {
    Pass<T> pass(a, false);
#pragma omp for schedule(dynamic)
    for (int64_t g = 0; g < groups; ++g) a.group(g).store(output, pass.forward(a.group(g)), shape.tasks * shape.D);
  }
}

// Sums the weights' gradients within parts of the batch, then over the parts: the same for any number of threads.
template <class T>
void backward(const Shape& shape, const T* const* read, const T* upstream, T* d_inputs, T* d_selection, T* d_weights,
              int threads) {
  const Arguments<T> a(shape, read);
  const int64_t groups = a.num_groups(), parts = std::min<int64_t>(groups, 64), size = Stack<T>::size(shape);
  std::vector<T> partial(parts * size);
#pragma omp parallel num_threads(std::clamp<int64_t>(parts, 1, threads))
  {
    Pass<T> pass(a, true);
#pragma omp for schedule(dynamic)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t g = part; g < groups; g += parts)
        pass.backward(a.group(g), upstream, Stack<T>::at(shape, &partial[part * size]), d_inputs, d_selection);
  }
  std::fill(d_weights, d_weights + size, T(0));
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t k = 0; k < size; ++k) d_weights[k] += partial[part * size + k];
}

Shape shape(const Tensor& inputs, const Tensor& selection, const std::vector<Tensor>& weights, int64_t heads,
            const std::string& residual, bool gated, bool masked) {
  check(weights.size() == Stack<float>::kTensors, "`weights` must be 12 tensors, not ", weights.size());
  const Tensor &points = weights[0], &indicators = weights[6];
  check(points.dim() == 3 && indicators.dim() == 3 && points.numel() && indicators.numel(),
        "points and indicators (of shapes ", text(sizes(points)), " and ", text(sizes(indicators)),
        ") must be [L, K, D] and [L, T, D], none of them 0");
  check(inputs.dim() == 3 && inputs.size(1), "`inputs` (of shape ", text(sizes(inputs)),
        ") must be [B, F, D], F at least 1");
  const int64_t L = points.size(0), K = points.size(1), D = points.size(2), T = indicators.size(1);
  const Sizes of_layer[] = {{L, K, D}, {L, D, D}, {L, D, D}, {L, D, D}, {L, D}, {L, D}};
  const Sizes of_task[] = {{L, T, D}, {L, T, D, D}, {L, T, D, D}, {L, T, D, D}, {L, T, D}, {L, T, D}};
  for (int i = 0; i < 6; ++i) {
    check_sizes("weights", weights[i], of_layer[i]);
    check_sizes("weights", weights[6 + i], of_task[i]);
  }
  check_sizes("inputs", inputs, {inputs.size(0), inputs.size(1), D});
  check_sizes("selection", selection, {inputs.size(0), K});
  check(heads > 0 && D % heads == 0, "`num_heads` (=", heads, ") must divide ", D);
  const int64_t kind = residual == "none" ? kNone : residual == "query" ? kQuery : kInput;
  check(kind != kInput || residual == "input", "`residual` (=", residual, ") must be 'input', 'query' or 'none'");
  check(gated || !masked, "`masked` must be false without `gated`");
  return {inputs.size(0), inputs.size(1), D, K, L, T, heads, kind, gated, masked};
}

Tensor inducing_stack(Tensor inputs, Tensor selection, std::vector<Tensor> weights, int64_t num_heads,
                      std::string residual, bool gated, bool masked) {
  const Shape s = shape(inputs, selection, weights, num_heads, residual, gated, masked);
  const Read read(inputs, selection, weights);
  Tensor output = empty(inputs, {s.batch, s.tasks, s.D});
  read.dispatch([&](auto zero) {
    using T = decltype(zero);
    forward<T>(s, read.pointers<T>().data(), written<T>(output), num_threads());
  });
  return output;
}

// The gradients of the inputs, of the selection, and of all weights one after the other.
std::tuple<Tensor, Tensor, Tensor> inducing_stack_backward(Tensor inputs, Tensor selection,
                                                           std::vector<Tensor> weights, Tensor upstream,
                                                           int64_t num_heads, std::string residual, bool gated,
                                                           bool masked) {
  const Shape s = shape(inputs, selection, weights, num_heads, residual, gated, masked);
  check_sizes("upstream", upstream, {s.batch, s.tasks, s.D});
  const Read read(inputs, selection, weights, upstream);
  Tensor d_inputs = empty(inputs, sizes(inputs)), d_selection = empty(selection, sizes(selection)),
         d_weights = empty(inputs, {Stack<float>::size(s)});
  read.dispatch([&](auto zero) {
    using T = decltype(zero);
    const std::vector<const T*> pointers = read.pointers<T>();
    backward<T>(s, pointers.data(), pointers.back(), written<T>(d_inputs), written<T>(d_selection),
                written<T>(d_weights), num_threads());
  });
  return {d_inputs, d_selection, d_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(torchrec_mtl, library) {
  library.def(
      "inducing_stack_cpp(Tensor inputs, Tensor selection, Tensor[] weights, int num_heads, str residual, bool gated, "
      "bool masked) -> Tensor");
  library.def(
      "inducing_stack_cpp_backward(Tensor inputs, Tensor selection, Tensor[] weights, Tensor upstream, int num_heads, "
      "str residual, bool gated, bool masked) -> (Tensor, Tensor, Tensor)");
}
STABLE_TORCH_LIBRARY_IMPL(torchrec_mtl, CPU, library) {
  library.impl("inducing_stack_cpp", TORCH_BOX(&inducing_stack));
  library.impl("inducing_stack_cpp_backward", TORCH_BOX(&inducing_stack_backward));
}
