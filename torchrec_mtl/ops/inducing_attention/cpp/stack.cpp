// TAFE's stack on the CPU, eq. (17)-(22): ASRG's layers with one selection, and the task adapters.
//
// As in attention.cpp, each SIMD lane holds one sample. A sample's rows with z = 0 are identical: a few of them are
// kept and stand for all. Samples that keep about the same number of rows are grouped. The backward pass recomputes
// the forward pass.

#include <numeric>

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
  std::vector<Adapter<T>> adapters;
  std::vector<V> last, adapted, d_y, d_z;
  typename Layer<T>::Space layer_space;
  typename Adapter<T>::Space adapter_space;

  V* output(int64_t l) { return l + 1 < s.layers ? layers[l + 1].x.data() : last.data(); }

 public:
  Pass(const Arguments<T>& a, bool keep)
      : a(a), s(a.s), plan(s), last(s.K * s.D), adapted(s.tasks * s.D), d_y(std::max(s.F, s.K) * s.D), d_z(s.K),
        layer_space(s, std::max(s.F, s.K)), adapter_space(s) {
    for (int64_t l = 0; l < s.layers; ++l) {
      layers.emplace_back(s, l ? s.K : s.F, keep);
      for (int64_t t = 0; t < s.tasks; ++t) adapters.emplace_back(s, a.weights.adapter(s, l, t));
    }
  }

  const V* forward(const Group<T>& group) {
    plan.make(group.rows(a.selection, s.K), s.gated);
    group.load(layers[0].x.data(), a.inputs, s.F * s.D);
    std::fill(adapted.begin(), adapted.end(), V{});
    for (int64_t l = 0; l < s.layers; ++l) {
      layers[l].forward(a.weights.layer(s, l), plan, group.present, l ? plan.rows : s.F,
                        l ? plan.log_count.data() : nullptr, a.residual(l), output(l));
      for (int64_t t = 0; t < s.tasks; ++t)
        adapters[l * s.tasks + t].forward(a.weights.adapter(s, l, t), output(l), plan.rows, plan.log_count.data(),
                                          &adapted[t * s.D]);
    }
    return adapted.data();
  }

  void backward(const Group<T>& group, const T* upstream, const Stack<T>& d_weights, T* d_inputs, T* d_selection) {
    forward(group);
    group.load(adapted.data(), upstream, s.tasks * s.D);  // from here on the gradient of T^l
    std::fill(d_y.begin(), d_y.end(), V{});
    std::fill(d_z.begin(), d_z.end(), V{});
    for (int64_t l = s.layers - 1; l >= 0; --l) {
      for (int64_t t = 0; t < s.tasks; ++t)
        adapters[l * s.tasks + t].backward(a.weights.adapter(s, l, t), d_weights.adapter(s, l, t), output(l),
                                           plan.rows, &adapted[t * s.D], d_y.data(), adapter_space);
      layers[l].backward(a.weights.layer(s, l), d_weights.layer(s, l), plan, group.present, l ? plan.rows : s.F,
                         a.residual(l), d_y.data(), d_z.data(), layer_space);
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

}  // namespace

#define EXPORT(T)                                                                                             \
  extern "C" void inducing_forward_##T(const Shape* s, const T* const* read, T* output, int threads) {        \
    forward<T>(*s, read, output, threads);                                                                    \
  }                                                                                                           \
  extern "C" void inducing_backward_##T(const Shape* s, const T* const* read, const T* upstream, T* d_inputs, \
                                        T* d_selection, T* d_weights, int threads) {                          \
    backward<T>(*s, read, upstream, d_inputs, d_selection, d_weights, threads);                               \
  }
EXPORT(float)
EXPORT(double)
