// BPCM's feature towers and the conversions from task to task on the CPU, eq. (2)-(9).
//
// As in attention.cpp, each SIMD lane holds one sample, and the backward pass recomputes the forward pass.

#include <numeric>

#include "../../cpp/operators.hpp"
#include "dropout.hpp"
#include "tower.hpp"

namespace {

struct Edge {
  int64_t parent, task;
};

// All weights, or their gradients: of each task's tower, then of each edge's attention.
template <class T>
struct Weights {
  std::vector<TowerWeights<T>> towers;
  std::vector<AttentionWeights<T>> conversions;

  Weights(const Shape& s, size_t edges, T* const* x) {
    for (int64_t t = 0; t < s.tasks; ++t, x += TowerWeights<T>::kTensors)
      towers.push_back({x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], x[8]});
    for (size_t e = 0; e < edges; ++e, x += 3) conversions.push_back({x[0], x[1], x[2]});
  }
};

template <class T>
struct Arguments {
  const Shape s;
  const std::vector<Edge> edges;
  const T* fields;
  const Weights<const T> weights;
  const Dropout<T> dropout;
};

// One group, forward and backward; the forward pass keeps what the backward pass needs.
template <class T>
class Pass {
  using V = Vector<T>;
  const Arguments<T>& a;
  const Shape& s;
  const int64_t size;
  std::vector<Tower<T>> towers;
  std::vector<Attention<T>> conversions;
  std::vector<V> x, queries, states, messages, d_x, d_states, d_message;
  typename Tower<T>::Space space;

 public:
  Pass(const Arguments<T>& a, bool keep)
      : a(a), s(a.s), size(s.F * s.D), x(size), queries(s.tasks * size), states(s.tasks * size),
        messages(a.edges.size() * size), d_x(size), d_states(s.tasks * size), d_message(size), space(s) {
    for (const auto& w : a.weights.towers) towers.emplace_back(s, w, keep);
    for (const auto& w : a.weights.conversions) conversions.emplace_back(s.F, s.F, s.D, s.heads, w, keep);
  }

  // Writes the state [B, F, D] of each task, if there is a place for it.
  void forward(const Group<T>& group, const std::vector<T*>& output) {
    group.load(x.data(), a.fields, size);
    for (int64_t t = 0; t < s.tasks; ++t) towers[t].forward(x.data(), &queries[t * size]);
    std::copy(queries.begin(), queries.end(), states.begin());
    for (size_t e = 0; e < a.edges.size(); ++e) {
      const V *query = &queries[a.edges[e].task * size], *parent = &states[a.edges[e].parent * size];
      V *state = &states[a.edges[e].task * size], *message = &messages[e * size];
      a.dropout.apply(message, parent, size, group, e);
      conversions[e].forward(query, message, state);
      for (int64_t i = 0; i < size; ++i) state[i] += query[i];
    }
    for (size_t t = 0; t < output.size(); ++t) group.store(output[t], &states[t * size], size);
  }

  void backward(const Group<T>& group, const T* const* upstream, T* d_fields, const Weights<T>& d_w) {
    forward(group, {});
    std::fill(d_x.begin(), d_x.end(), V{});
    for (int64_t t = 0; t < s.tasks; ++t) group.load(&d_states[t * size], upstream[t], size);
    for (size_t e = a.edges.size(); e--;) {
      const int64_t parent = a.edges[e].parent * size, task = a.edges[e].task * size;
      std::copy_n(&d_states[task], size, states.begin());  // the backward pass of attention overwrites it
      std::fill(d_message.begin(), d_message.end(), V{});
      conversions[e].backward(&queries[task], &messages[e * size], states.data(), &d_states[task], d_message.data(),
                              d_w.conversions[e], space.attention);
      a.dropout.apply(d_message.data(), d_message.data(), size, group, e);
      for (int64_t i = 0; i < size; ++i) d_states[parent + i] += d_message[i];
    }
    for (int64_t t = 0; t < s.tasks; ++t)
      towers[t].backward(x.data(), &d_states[t * size], d_x.data(), d_w.towers[t], space);
    group.store(d_fields, d_x.data(), size);
  }
};

template <class T>
int64_t num_groups(const Arguments<T>& a) {
  return (a.s.batch + kLanes<T> - 1) / kLanes<T>;
}

template <class T>
void forward(const Arguments<T>& a, const std::vector<T*>& output, int threads) {
  const int64_t groups = num_groups(a);
#pragma omp parallel num_threads(std::clamp<int64_t>(groups, 1, threads))
  {
    Pass<T> pass(a, false);
#pragma omp for
    for (int64_t g = 0; g < groups; ++g) pass.forward(Group<T>(g, a.s.batch), output);
  }
}

// Weights of the sizes given that lie one after the other from `next`
template <class T>
Weights<T> at(const Arguments<T>& a, T* next, const Sizes& sizes) {
  std::vector<T*> pointers;
  for (const int64_t size : sizes) pointers.push_back(next), next += size;
  return Weights<T>(a.s, a.edges.size(), pointers.data());
}

// Sums the weights' gradients within parts of the batch, then over the parts: the same for any number of threads.
template <class T>
void backward(const Arguments<T>& a, const T* const* upstream, const Sizes& sizes, T* d_fields, T* d_weights,
              int threads) {
  const int64_t groups = num_groups(a), parts = std::min<int64_t>(groups, 64);
  const int64_t size = std::accumulate(sizes.begin(), sizes.end(), int64_t(0));
  std::vector<T> partial(parts * size);
#pragma omp parallel num_threads(std::clamp<int64_t>(parts, 1, threads))
  {
    Pass<T> pass(a, true);
#pragma omp for
    for (int64_t part = 0; part < parts; ++part) {
      const Weights<T> d_w = at(a, &partial[part * size], sizes);
      for (int64_t g = part * groups / parts; g < (part + 1) * groups / parts; ++g)
        pass.backward(Group<T>(g, a.s.batch), upstream, d_fields, d_w);
    }
  }
  std::fill(d_weights, d_weights + size, T(0));
  for (int64_t k = 0; k < parts * size; ++k) d_weights[k % size] += partial[k];
  const Weights<T> d_w = at(a, d_weights, sizes);
  const auto unfold = [&](const auto& w, const auto& d) {
    Attention<T>::unfold(a.s.D, a.s.heads, {w.query, w.key, w.value}, {d.query, d.key, d.value});
  };
  for (int64_t t = 0; t < a.s.tasks; ++t) unfold(a.weights.towers[t], d_w.towers[t]);
  for (size_t e = 0; e < a.edges.size(); ++e) unfold(a.weights.conversions[e], d_w.conversions[e]);
}

std::vector<Edge> pairs(const std::vector<int64_t>& edges, int64_t tasks) {
  check(!edges.empty() && edges.size() % 2 == 0, "`edges` must be pairs of tasks, at least one");
  std::vector<Edge> all;
  for (size_t e = 0; e < edges.size(); e += 2) {
    for (const int64_t task : {edges[e], edges[e + 1]})
      check(0 <= task && task < tasks, "`edges` must be between tasks 0 and ", tasks - 1);
    all.push_back({edges[e], edges[e + 1]});
  }
  return all;
}

Shape shape(const Tensor& fields, const std::vector<Tensor>& weights, size_t edges, int64_t heads) {
  const int64_t of_edges = 3 * static_cast<int64_t>(edges);
  const int64_t of_towers = static_cast<int64_t>(weights.size()) - of_edges, each = TowerWeights<float>::kTensors;
  check(of_towers > 0 && of_towers % each == 0, "`weights` must be ", each, " tensors a task and 3 an edge, not ",
        weights.size());
  check(fields.dim() == 3 && fields.size(1) && fields.size(2), "`fields` (of shape ", text(sizes(fields)),
        ") must be [B, F, D], F and D at least 1");
  const int64_t D = fields.size(2), hidden = weights[4].numel();
  check(heads > 0 && D % heads == 0, "`num_heads` (=", heads, ") must divide ", D);
  check(hidden > 0, "`weights` must have a hidden width of at least 1");
  const Sizes square = {D, D};
  const Sizes of_tower[] = {square, square, square, {hidden, D}, {hidden}, {D, hidden}, {D}, square, square};
  for (int64_t i = 0; i < of_towers + of_edges; ++i)
    check_sizes("weights", weights[i], i < of_towers ? of_tower[i % each] : square);
  return {fields.size(0), fields.size(1), D, hidden, of_towers / each, heads};
}

template <class T>
Arguments<T> arguments(const Shape& s, const std::vector<Edge>& edges, const Read& read, int64_t seed, double dropout) {
  const std::vector<const T*> pointers = read.pointers<T>();
  return {s, edges, pointers[0], Weights<const T>(s, edges.size(), pointers.data() + 1), Dropout<T>(seed, dropout)};
}

void check_dropout(double p) { check(0 <= p && p < 1, "`dropout` (=", p, ") must be at least 0 and below 1"); }

// The state of each task
std::vector<Tensor> conversion(Tensor fields, std::vector<Tensor> weights, std::vector<int64_t> edges,
                               int64_t num_heads, double dropout, int64_t seed) {
  const Shape s = shape(fields, weights, edges.size() / 2, num_heads);
  const std::vector<Edge> all = pairs(edges, s.tasks);
  check_dropout(dropout);
  const Read read(fields, weights);
  std::vector<Tensor> states;
  for (int64_t t = 0; t < s.tasks; ++t) states.push_back(empty(fields, sizes(fields)));
  read.dispatch([&](auto zero) {
    using T = decltype(zero);
    std::vector<T*> output;
    for (const Tensor& state : states) output.push_back(written<T>(state));
    forward<T>(arguments<T>(s, all, read, seed, dropout), output, num_threads());
  });
  return states;
}

// The gradients of the fields, and of all weights one after the other.
std::tuple<Tensor, Tensor> conversion_backward(Tensor fields, std::vector<Tensor> weights,
                                               std::vector<Tensor> upstream, std::vector<int64_t> edges,
                                               int64_t num_heads, double dropout, int64_t seed) {
  const Shape s = shape(fields, weights, edges.size() / 2, num_heads);
  const std::vector<Edge> all = pairs(edges, s.tasks);
  check_dropout(dropout);
  check(static_cast<int64_t>(upstream.size()) == s.tasks, "`upstream` must be one tensor a task, not ", upstream.size());
  for (const Tensor& of_state : upstream) check_sizes("upstream", of_state, sizes(fields));
  const Read read(fields, weights, upstream);
  Sizes of_weights;
  for (const Tensor& weight : weights) of_weights.push_back(weight.numel());
  Tensor d_fields = empty(fields, sizes(fields)),
         d_weights = empty(fields, {std::accumulate(of_weights.begin(), of_weights.end(), int64_t(0))});
  read.dispatch([&](auto zero) {
    using T = decltype(zero);
    const std::vector<const T*> pointers = read.pointers<T>();
    backward<T>(arguments<T>(s, all, read, seed, dropout), pointers.data() + 1 + weights.size(), of_weights, written<T>(d_fields),
                written<T>(d_weights), num_threads());
  });
  return {d_fields, d_weights};
}

// What dropout multiplies the message of each of `num_edges` edges with [E, B, F, D].
Tensor masks(Tensor fields, int64_t num_edges, double dropout, int64_t seed) {
  check(fields.dim() == 3, "`fields` (of shape ", text(sizes(fields)), ") must be [B, F, D]");
  check_dropout(dropout);
  const Read read(fields);
  const int64_t batch = fields.size(0), size = fields.size(1) * fields.size(2);
  Tensor output = empty(fields, {num_edges, batch, fields.size(1), fields.size(2)});
  read.dispatch([&](auto zero) {
    using T = decltype(zero);
    std::vector<Vector<T>> ones(size, Vector<T>{} + 1), mask(size);
    for (int64_t e = 0; e < num_edges; ++e)
      for (int64_t g = 0; g * kLanes<T> < batch; ++g) {
        const Group<T> group(g, batch);
        Dropout<T>(seed, dropout).apply(mask.data(), ones.data(), size, group, e);
        group.store(written<T>(output) + e * batch * size, mask.data(), size);
      }
  });
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(torchrec_mtl, library) {
  library.def(
      "behavior_conversion(Tensor fields, Tensor[] weights, int[] edges, int num_heads, float dropout, int seed) -> "
      "Tensor[]");
  library.def(
      "behavior_conversion_backward(Tensor fields, Tensor[] weights, Tensor[] upstream, int[] edges, int num_heads, "
      "float dropout, int seed) -> (Tensor, Tensor)");
  library.def("behavior_conversion_masks(Tensor fields, int num_edges, float dropout, int seed) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(torchrec_mtl, CPU, library) {
  library.impl("behavior_conversion", TORCH_BOX(&conversion));
  library.impl("behavior_conversion_backward", TORCH_BOX(&conversion_backward));
  library.impl("behavior_conversion_masks", TORCH_BOX(&masks));
}
