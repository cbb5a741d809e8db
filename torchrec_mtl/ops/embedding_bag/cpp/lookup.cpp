// Looks up and pools all fields of a batch at once: each id's row is read from the table as it lies.

#include "bags.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace {

constexpr int64_t kBlock = 64;  // samples whose outputs stay in the cache while the fields are gone through
constexpr int64_t kAhead = 8;   // ids

template <class T>
void pool(const Bags& bags, int64_t f, int64_t sample, const T* table, const T* weights, T* out) {
  const int64_t D = bags.widths[bags.table[f]], first = bags.begin(f, sample), last = bags.end(f, sample);
  if (first == last) {
    std::memset(out, 0, D * sizeof(T));
    return;
  }
  const T* row = table + bags.ids[first] * D;
  if (!weights) {
    std::memcpy(out, row, D * sizeof(T));
  } else {
    for (int64_t d = 0; d < D; ++d) out[d] = weights[first] * row[d];
  }
  for (int64_t p = first + 1; p < last; ++p) {
    row = table + bags.ids[p] * D;
    const T weight = weights ? weights[p] : T(1);
    for (int64_t d = 0; d < D; ++d) out[d] += weight * row[d];
  }
  if (bags.mean[f] && last - first > 1)
    for (int64_t d = 0; d < D; ++d) out[d] /= static_cast<T>(last - first);
}

template <class T>
void look_up(const Bags& bags, const std::vector<const T*>& tables, const T* weights, T* out, int threads) {
  const int64_t blocks = (bags.batch + kBlock - 1) / kBlock;
  std::atomic<int64_t> bad_field{-1}, bad_place{-1};
#pragma omp parallel for num_threads(std::clamp<int64_t>(blocks, 1, threads)) if (blocks > 1)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t from = block * kBlock, to = std::min(from + kBlock, bags.batch);
    for (int64_t f = 0; f < bags.fields; ++f) {
      const T* table = tables[bags.table[f]];
      const int64_t D = bags.widths[bags.table[f]], end = bags.begin(f, from + (to - from));
      bool all_fit = true;
      for (int64_t p = bags.begin(f, from); p < end; ++p) {
        if (bags.has(f, p)) continue;
        all_fit = false;
        bad_place = p;
        bad_field = f;
      }
      if (!all_fit) continue;
      for (int64_t sample = from; sample < to; ++sample) {
        const int64_t next = bags.begin(f, sample) + kAhead;
        if (next < end) __builtin_prefetch(table + bags.ids[next] * D);
        pool(bags, f, sample, table, weights, out + sample * bags.width + bags.columns[f]);
      }
    }
  }
  if (bad_field >= 0) bags.refuse(bad_field, bad_place);
}

Tensor lookup(std::vector<Tensor> tables, std::vector<int64_t> table_of_field, std::vector<int64_t> key_of_field,
              std::vector<int64_t> mean_of_field, Tensor ids, Tensor offsets, int64_t batch,
              std::optional<Tensor> weights) {
  const Bags bags(tables, std::move(table_of_field), std::move(key_of_field), std::move(mean_of_field), ids, offsets,
                  batch);
  Tensor output = empty(tables[0], {batch, bags.width});
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    std::vector<const T*> pointers;
    for (const Tensor& table : tables) pointers.push_back(static_cast<const T*>(table.const_data_ptr()));
    look_up<T>(bags, pointers, weights_or_null<T>(weights, tables[0], ids.numel()), written<T>(output),
               num_threads());
  };
  using torch::headeronly::ScalarType;
  const auto type = tables[0].scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double, "tables must be float32 or float64");
  type == ScalarType::Float ? run(float()) : run(double());
  return output;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(torchrec_mtl, library) {
  library.def(
      "embedding_bag_lookup(Tensor[] tables, int[] table_of_field, int[] key_of_field, int[] mean_of_field, "
      "Tensor ids, Tensor offsets, int batch, Tensor? weights) -> Tensor");
}
STABLE_TORCH_LIBRARY_IMPL(torchrec_mtl, CPU, library) {
  library.impl("embedding_bag_lookup", TORCH_BOX(&lookup));
}
