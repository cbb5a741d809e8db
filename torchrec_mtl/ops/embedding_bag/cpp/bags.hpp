// The bags of a batch: which rows of which table each field of each sample pools.

#pragma once

#include <optional>

#include "../../cpp/operators.hpp"

namespace {

// int32 or int64 on the CPU, read as int64.
inline Tensor integers(const char* name, const Tensor& x) {
  using torch::headeronly::ScalarType;
  check(x.is_cpu() && x.dim() == 1, "`", name, "` must be one-dimensional and on the CPU");
  const auto type = x.scalar_type();
  check(type == ScalarType::Long || type == ScalarType::Int, "`", name, "` must be int64 or int32");
  return torch::stable::contiguous(type == ScalarType::Long ? x : torch::stable::to(x, ScalarType::Long));
}

// Ids key by key and sample by sample, as a KeyedJaggedTensor holds them. Field f reads key `key[f]`.
class Bags {
  Tensor kept_ids, kept_offsets;

 public:
  const std::vector<int64_t> table, key, mean;  // of each field; whether its rows are averaged or summed
  const int64_t batch, fields;
  const int64_t *ids, *offsets;
  std::vector<int64_t> rows, widths, columns;  // of each table; of each field its first column
  int64_t width = 0;

  Bags(const std::vector<Tensor>& tables, std::vector<int64_t> table_of_field, std::vector<int64_t> key_of_field,
       std::vector<int64_t> mean_of_field, const Tensor& given_ids, const Tensor& given_offsets, int64_t batch)
      : kept_ids(integers("ids", given_ids)),
        kept_offsets(integers("offsets", given_offsets)),
        table(std::move(table_of_field)),
        key(std::move(key_of_field)),
        mean(std::move(mean_of_field)),
        batch(batch),
        fields(table.size()),
        ids(static_cast<const int64_t*>(kept_ids.const_data_ptr())),
        offsets(static_cast<const int64_t*>(kept_offsets.const_data_ptr())) {
    check(!tables.empty() && fields && key.size() == table.size() && mean.size() == table.size(),
          "there must be a table, and a table, a key and a pooling for each field");
    for (const Tensor& x : tables) {
      check(x.is_cpu() && x.dim() == 2 && x.is_contiguous() && x.scalar_type() == tables[0].scalar_type(),
            "tables must be contiguous matrices on the CPU, all of one type");
      rows.push_back(x.size(0));
      widths.push_back(x.size(1));
    }
    const int64_t num_offsets = kept_offsets.numel(), num_ids = kept_ids.numel();
    check(batch >= 0 && num_offsets % std::max<int64_t>(batch, 1) == (batch > 1), "`offsets` (", num_offsets,
          " of them) must be one more than a multiple of the batch (=", batch, ")");
    for (int64_t f = 0; f < fields; ++f) {
      check(table[f] >= 0 && table[f] < static_cast<int64_t>(tables.size()), "a field's table (=", table[f],
            ") must be one of ", tables.size());
      check(key[f] >= 0 && (key[f] + 1) * batch < num_offsets, "a field's key (=", key[f], ") must be in the batch");
      columns.push_back(width);
      width += widths[table[f]];
      const int64_t *of_key = offsets + key[f] * batch;
      int64_t any = (of_key[0] < 0) | (of_key[batch] > num_ids);  // they would read foreign memory
      for (int64_t p = 0; p < batch; ++p) any |= of_key[p + 1] < of_key[p];
      check(!any, "`offsets` must grow, up to the number of ids (=", num_ids, ")");
    }
  }

  int64_t begin(int64_t f, int64_t sample) const { return offsets[key[f] * batch + sample]; }

  // The first place from `from` to `to` whose id is no row of the field's table; -1 if there is none.
  int64_t first_without_row(int64_t f, int64_t from, int64_t to) const {
    const int64_t *id = ids, last = rows[table[f]] - 1;
    int64_t any = 0;
    for (int64_t p = from; p < to; ++p) any |= (id[p] < 0) | (id[p] > last);
    if (!any) return -1;
    while (id[from] >= 0 && id[from] <= last) ++from;
    return from;
  }

  [[noreturn]] void refuse(int64_t f, int64_t place) const {
    check(false, "an id of key ", key[f], " (=", ids[place], ") must be from 0 to ", rows[table[f]] - 1);
    __builtin_unreachable();
  }
};

// Fetches all of a row into the cache, which may not be a row at all.
template <bool to_write, class T>
inline void prefetch_row(const T* row, int64_t D) {
  for (int64_t d = 0; d < D; d += 64 / sizeof(T)) __builtin_prefetch(row + d, to_write);
}

// The weights of ids, if there are any, which must be of the tables' type.
template <class T>
inline const T* weights_or_null(const std::optional<Tensor>& weights, const Tensor& table, int64_t num_ids) {
  if (!weights) return nullptr;
  check(weights->is_cpu() && weights->is_contiguous() && weights->scalar_type() == table.scalar_type() &&
            weights->numel() == num_ids,
        "`weights` must be one for each id, contiguous, on the CPU and of the tables' type");
  return static_cast<const T*>(weights->const_data_ptr());
}

}  // namespace
