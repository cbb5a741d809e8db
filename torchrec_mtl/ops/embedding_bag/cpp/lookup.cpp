// Looks up and pools all fields of a batch at once: each id's row is read from the table as it lies.

#include "bags.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace {

constexpr int64_t kLeast = 64, kMost = 512;  // samples that a thread takes together
constexpr int64_t kAhead = 16;               // ids

// Pools rows of one field's table: `samples` bags, which begin at `offsets`, to columns of `out` that are `stride` apart.
template <class T>
void pool(const T* table, int64_t D, const int64_t* ids, const int64_t* offsets, int64_t samples, int64_t end,
          const T* weights, bool mean, T* out, int64_t stride) {
  for (int64_t sample = 0; sample < samples; ++sample, out += stride) {
    const int64_t first = offsets[sample], last = offsets[sample + 1];
    if (first + kAhead < end) prefetch_row<false>(table + ids[first + kAhead] * D, D);
    if (first == last) {
      std::memset(out, 0, D * sizeof(T));
      continue;
    }
    const T* row = table + ids[first] * D;
    if (!weights) {
      for (int64_t d = 0; d < D; ++d) out[d] = row[d];
    } else {
      for (int64_t d = 0; d < D; ++d) out[d] = weights[first] * row[d];
    }
    for (int64_t p = first + 1; p < last; ++p) {
      row = table + ids[p] * D;
      const T weight = weights ? weights[p] : T(1);
      for (int64_t d = 0; d < D; ++d) out[d] += weight * row[d];
    }
    if (mean && last - first > 1)
      for (int64_t d = 0; d < D; ++d) out[d] /= static_cast<T>(last - first);
  }
}

template <class T>
void look_up(const Bags& bags, const std::vector<const T*>& tables, const T* weights, T* out, int threads) {
  const int64_t size = std::clamp<int64_t>(bags.batch / threads, kLeast, kMost);
  const int64_t blocks = (bags.batch + size - 1) / size;
  std::atomic<int64_t> bad_field{-1}, bad_place{-1};
#pragma omp parallel for num_threads(std::clamp<int64_t>(blocks, 1, threads)) if (blocks > 1)
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t from = block * size, samples = std::min(size, bags.batch - from);
    for (int64_t f = 0; f < bags.fields; ++f) {
      const int64_t bad = bags.first_without_row(f, bags.begin(f, from), bags.begin(f, from + samples));
      if (bad >= 0) {
        bad_place = bad;
        bad_field = f;
        continue;
      }
      pool(tables[bags.table[f]], bags.widths[bags.table[f]], bags.ids, bags.offsets + bags.key[f] * bags.batch + from,
           samples, bags.begin(f, bags.batch), weights, bags.mean[f] != 0, out + from * bags.width + bags.columns[f],
           bags.width);
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
  dispatch(tables[0], run);
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
