// Steps the rows of tables that a batch looked up, and no others: SGD, Adagrad, Adam, and their row-wise kinds.
//
// A row's gradients are summed first, field by field and id by id, so the result has the same bits for any number of
// threads: each row is one thread's. A row that one bag alone has takes its gradient from where it lies.

#include "bags.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace {

enum Kind { kSgd, kAdagrad, kRowwiseAdagrad, kAdam, kRowwiseAdam };
const char* const kNames[] = {"sgd", "adagrad", "rowwise_adagrad", "adam", "rowwise_adam"};
constexpr bool kHasState[][2] = {{0, 0}, {1, 0}, {1, 0}, {1, 1}, {1, 1}};
constexpr bool kIsRowwise[][2] = {{0, 0}, {0, 0}, {1, 0}, {0, 0}, {0, 1}};
constexpr size_t kAhead = 8;  // rows

template <class T>
struct Settings {
  T rate, eps, decay;
  T beta1, beta2, rest1, rest2;  // 1 - beta, which a difference in T would be too far from
  T rate1, root2;                // correct the biases of the moments
};

// A table and its states; the batch's gradient, and the weights of ids or null.
template <class T>
struct Memory {
  T *weights, *state[2];
  int64_t width[2];  // of a row of each state
  const T *gradient, *of_ids;
};

// In eight sums, which the compiler may not make of one.
template <class T>
inline T mean_square(const T* x, int64_t D) {
  T sums[8] = {}, rest = 0;
  int64_t d = 0;
  for (; d + 8 <= D; d += 8)
    for (int i = 0; i < 8; ++i) sums[i] += x[d + i] * x[d + i];
  for (; d < D; ++d) rest += x[d] * x[d];
  for (const T sum : sums) rest += sum;
  return rest / static_cast<T>(D);
}

// Steps one row by its gradient g [D]; m and v are the row's states.
template <class T, Kind kind>
inline void step(const Settings<T>& s, int64_t D, const T* __restrict__ g, T* __restrict__ w, T* __restrict__ m,
                 T* __restrict__ v) {
  if constexpr (kind == kSgd)
    for (int64_t d = 0; d < D; ++d) w[d] -= s.rate * g[d];
  if constexpr (kind == kAdagrad)
    for (int64_t d = 0; d < D; ++d) {
      m[d] += g[d] * g[d];
      w[d] -= s.rate * g[d] / (std::sqrt(m[d]) + s.eps);
    }
  if constexpr (kind == kRowwiseAdagrad) {
    *m += mean_square(g, D);
    const T rate = s.rate / (std::sqrt(*m) + s.eps);
    for (int64_t d = 0; d < D; ++d) w[d] -= rate * g[d];
  }
  if constexpr (kind == kAdam)
    for (int64_t d = 0; d < D; ++d) {
      m[d] = s.beta1 * m[d] + s.rest1 * g[d];
      v[d] = s.beta2 * v[d] + s.rest2 * g[d] * g[d];
      w[d] -= s.rate1 * m[d] / (std::sqrt(v[d]) * s.root2 + s.eps) + s.decay * w[d];
    }
  if constexpr (kind == kRowwiseAdam) {
    *v = s.beta2 * *v + s.rest2 * mean_square(g, D);
    const T rate = s.rate1 / (std::sqrt(*v) * s.root2 + s.eps);
    for (int64_t d = 0; d < D; ++d) {
      m[d] = s.beta1 * m[d] + s.rest1 * g[d];
      w[d] -= rate * m[d] + s.decay * w[d];
    }
  }
}

// The distinct rows that fields look up in one table, in the order of their first ids, and the gradients of each.
template <class T>
class Touched {
  std::vector<int32_t> slots, last, next;  // an open hash table of rows; the gradients of a row form a list
  std::vector<const T*> gradients;
  std::vector<T> scales, sum;
  int shift = 0;

 public:
  std::vector<int64_t> rows;
  std::vector<int32_t> first;
  size_t size = 0;  // number of rows

  // Rows whose number leaves the remainder `part` when divided by `parts`.
  void collect(const Bags& bags, int64_t t, const Memory<T>& memory, int64_t part, int64_t parts) {
    int64_t count = 0;
    bool has_scales = memory.of_ids;
    for (int64_t f = 0; f < bags.fields; ++f) {
      if (bags.table[f] != t) continue;
      count += bags.begin(f, bags.batch) - bags.begin(f, 0);
      has_scales |= bags.mean[f] != 0;
    }
    check(count < std::numeric_limits<int32_t>::max() / 2, "a table must have fewer ids in a batch (=", count, ")");
    const uint64_t num_slots = std::bit_ceil<uint64_t>(std::max<uint64_t>(2, std::min(2 * count, bags.rows[t])));
    shift = static_cast<uint64_t>(bags.rows[t]) <= num_slots ? 0 : 64 - std::countr_zero(num_slots);
    slots.assign(num_slots, -1);
    rows.resize(count), first.resize(count), last.resize(count), next.resize(count), gradients.resize(count);
    scales.resize(has_scales ? count : 0);
    sum.resize(bags.widths[t]);
    size = 0;
    int32_t k = 0;
    for (int64_t f = 0; f < bags.fields; ++f) {
      if (bags.table[f] != t) continue;
      const int64_t *ids = bags.ids, *offsets = bags.offsets + bags.key[f] * bags.batch;
      const T* gradient = memory.gradient + bags.columns[f];
      for (int64_t sample = 0; sample < bags.batch; ++sample, gradient += bags.width) {
        const int64_t begin = offsets[sample], end = offsets[sample + 1];
        for (int64_t place = begin; place < end; ++place) {
          if (parts > 1 && ids[place] % parts != part) continue;
          if (has_scales)
            scales[k] = (memory.of_ids ? memory.of_ids[place] : 1) / (bags.mean[f] ? static_cast<T>(end - begin) : 1);
          gradients[k] = gradient;
          add(ids[place], k++);
        }
      }
    }
  }

  const T* first_gradient(size_t u) const { return gradients[first[u]]; }

  // The summed gradient of the u-th row.
  const T* gradient(size_t u, int64_t D) {
    const int32_t head = first[u];
    if (scales.empty() && next[head] < 0) return gradients[head];
    std::fill(sum.begin(), sum.end(), T(0));
    for (int32_t k = head; k >= 0; k = next[k]) {
      const T scale = scales.empty() ? T(1) : scales[k];
      const T* one = gradients[k];
      for (int64_t d = 0; d < D; ++d) sum[d] += scale * one[d];
    }
    return sum.data();
  }

 private:
  // Notes that the k-th gradient is of a row.
  void add(int64_t row, int32_t k) {
    next[k] = -1;
    size_t slot = shift ? static_cast<uint64_t>(row) * 0x9E3779B97F4A7C15u >> shift : row;
    while (slots[slot] >= 0 && rows[slots[slot]] != row) slot = (slot + 1) & (slots.size() - 1);
    const int32_t u = slots[slot];
    if (u >= 0) {
      next[last[u]] = k;
      last[u] = k;
      return;
    }
    slots[slot] = static_cast<int32_t>(size);
    rows[size] = row;
    first[size] = last[size] = k;
    ++size;
  }
};

template <class T, Kind kind>
void step_all(Touched<T>& touched, const Settings<T>& settings, const Memory<T>& memory, int64_t D) {
  const auto of_state = [&](int i, int64_t row) { return memory.state[i] + row * memory.width[i]; };
  for (size_t u = 0; u < touched.size; ++u) {
    if (u + kAhead < touched.size) {
      const int64_t row = touched.rows[u + kAhead];
      prefetch_row<true>(memory.weights + row * D, D);
      prefetch_row<false>(touched.first_gradient(u + kAhead), D);
      for (int i = 0; i < 2; ++i)
        if (kHasState[kind][i]) prefetch_row<true>(of_state(i, row), memory.width[i]);
    }
    const int64_t row = touched.rows[u];
    step<T, kind>(settings, D, touched.gradient(u, D), memory.weights + row * D, of_state(0, row), of_state(1, row));
  }
}

template <class T, Kind kind>
void update_tables(const Bags& bags, const std::vector<Memory<T>>& tables, const Settings<T>& settings, int threads) {
  const int64_t count = tables.size(), parts = threads > 1 ? (4 * threads + count - 1) / count : 1;
#pragma omp parallel num_threads(std::clamp<int64_t>(count * parts, 1, threads))
  {
    Touched<T> touched;
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < count * parts; ++i) {
      const Memory<T>& memory = tables[i / parts];
      touched.collect(bags, i / parts, memory, i % parts, parts);
      step_all<T, kind>(touched, settings, memory, bags.widths[i / parts]);
    }
  }
}

void update(std::vector<Tensor> tables, std::vector<Tensor> state1, std::vector<Tensor> state2,
            std::vector<int64_t> table_of_field, std::vector<int64_t> key_of_field, std::vector<int64_t> mean_of_field,
            Tensor ids, Tensor offsets, int64_t batch, std::optional<Tensor> weights, Tensor gradient,
            std::string optimizer, double learning_rate, double beta1, double beta2, double eps, double weight_decay,
            int64_t step) {
  const Bags bags(tables, std::move(table_of_field), std::move(key_of_field), std::move(mean_of_field), ids, offsets,
                  batch);
  const auto named = std::find(std::begin(kNames), std::end(kNames), optimizer);
  check(named != std::end(kNames), "`optimizer` (=", optimizer, ") is unknown");
  const auto kind = static_cast<Kind>(named - kNames);
  check_sizes("gradient", gradient, {batch, bags.width});
  const std::vector<Tensor>* states[] = {&state1, &state2};
  for (size_t i = 0; i < 2; ++i) {
    check(states[i]->size() == (kHasState[kind][i] ? tables.size() : 0), optimizer, " must have other states");
    for (size_t t = 0; t < states[i]->size(); ++t) {
      const Tensor& state = (*states[i])[t];
      check_sizes("state", state, kIsRowwise[kind][i] ? Sizes{bags.rows[t]} : sizes(tables[t]));
      check(state.is_cpu() && state.is_contiguous() && state.scalar_type() == tables[0].scalar_type(),
            "states must be contiguous, on the CPU, and of the tables' type");
    }
  }
  for (int64_t f = 0; f < bags.fields; ++f) {  // before any update
    const int64_t bad = bags.first_without_row(f, bags.begin(f, 0), bags.begin(f, batch));
    if (bad >= 0) bags.refuse(f, bad);
  }
  const Tensor contiguous = torch::stable::contiguous(gradient);
  check(contiguous.is_cpu() && contiguous.scalar_type() == tables[0].scalar_type(),
        "`gradient` must be on the CPU and of the tables' type");
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const double correction1 = 1 - std::pow(beta1, step), correction2 = 1 - std::pow(beta2, step);
    const Settings<T> settings{T(learning_rate), T(eps),       T(learning_rate * weight_decay),
                               T(beta1),         T(beta2),     T(1 - beta1),
                               T(1 - beta2),     T(learning_rate / correction1),
                               T(1 / std::sqrt(correction2))};
    std::vector<Memory<T>> all;
    for (size_t t = 0; t < tables.size(); ++t) {
      Memory<T> memory{written<T>(tables[t]), {}, {}, static_cast<const T*>(contiguous.const_data_ptr()),
                       weights_or_null<T>(weights, tables[0], ids.numel())};
      for (size_t i = 0; i < 2; ++i) {
        memory.state[i] = kHasState[kind][i] ? written<T>((*states[i])[t]) : nullptr;
        memory.width[i] = kHasState[kind][i] ? (kIsRowwise[kind][i] ? 1 : bags.widths[t]) : 0;
      }
      all.push_back(memory);
    }
    const auto update_as = [&](auto of_kind) {
      update_tables<T, decltype(of_kind)::value>(bags, all, settings, num_threads());
    };
    if (kind == kSgd) update_as(std::integral_constant<Kind, kSgd>());
    if (kind == kAdagrad) update_as(std::integral_constant<Kind, kAdagrad>());
    if (kind == kRowwiseAdagrad) update_as(std::integral_constant<Kind, kRowwiseAdagrad>());
    if (kind == kAdam) update_as(std::integral_constant<Kind, kAdam>());
    if (kind == kRowwiseAdam) update_as(std::integral_constant<Kind, kRowwiseAdam>());
  };
  dispatch(tables[0], run);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(torchrec_mtl, library) {
  library.def(
      "embedding_bag_update(Tensor(a!)[] tables, Tensor(b!)[] state1, Tensor(c!)[] state2, int[] table_of_field, "
      "int[] key_of_field, int[] mean_of_field, Tensor ids, Tensor offsets, int batch, Tensor? weights, "
      "Tensor gradient, str optimizer, float learning_rate, float beta1, float beta2, float eps, float weight_decay, "
      "int step) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(torchrec_mtl, CPU, library) {
  library.impl("embedding_bag_update", TORCH_BOX(&update));
}
