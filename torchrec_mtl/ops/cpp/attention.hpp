// Attention of one set of rows to another, for the samples in one vector.

#pragma once

#include <cmath>
#include <vector>

#include "products.hpp"

// One head's attention of R rows to N rows, in blocks whose scores stay in the first cache.
template <class T>
struct Head {
  using V = Vector<T>;
  static constexpr int64_t kBlock = 8 * kTileRows;
  int64_t R, N, width;
  const V *query, *key, *value;  // rows are `stride` apart; the query makes scores base-2 logarithms
  int64_t stride;
  const V *bias, *some;  // of the scores of each of the N rows, and 0 where a sample attends to none; or null
  V *p, *inverse;  // exponentials [R, N | 1] if they are kept, otherwise of one block; 1 / their sum [R]
  bool keep;

  V* weights(int64_t r) const { return keep ? p + r * step() : p; }
  Matrix<const V> of(const V* rows) const { return {rows, stride}; }
  int64_t step() const { return N | 1; }  // odd: rows a power of two apart would share a few cache lines

  void weigh(int64_t r, int64_t count) const {
    product<V, V>(Matrix<V>{weights(r), step()}, of(query + r * stride), of(key).transposed(), count, width, N);
    exponentials<T>({weights(r), step()}, count, N, bias, inverse + r);
    if (some) multiply(inverse + r, *some, count);
  }

  // out = softmax(query key^T + bias) value
  void forward(V* out) const {
    for (int64_t r = 0; r < R; r += kBlock) {
      const int64_t count = std::min(kBlock, R - r);
      weigh(r, count);
      product<V, V>(Matrix<V>{out + r * stride, stride}, Matrix<V>{weights(r), step()}, of(value), count, N, width);
      for (int64_t i = r; i < r + count; ++i) multiply(out + i * stride, inverse[i], width);
    }
  }

  // From the gradient of `out`, which it overwrites, to log2(e) times the gradient of the query; adds to that of value,
  // log2(e) times that of key, and that of the bias if it is asked for. `d` is space for a block.
  void backward(V* d_out, V* d_query, V* d_key, V* d_value, V* d, V* d_bias = nullptr) const {
    for (int64_t r = 0; r < R; r += kBlock) {
      const int64_t count = std::min(kBlock, R - r);
      if (!keep) weigh(r, count);
      const Matrix<V> out{d_out + r * stride, stride}, e{weights(r), step()}, ds{d, step()};
      for (int64_t i = 0; i < count; ++i) multiply(out.from(i).at, inverse[r + i], width);
      product<V, V>(ds, out, of(value).transposed(), count, width, N);
      for (int64_t i = 0; i < count; ++i) softmax_back(ds.from(i).at, e.from(i).at, inverse[r + i], N);
      if (d_bias) add_rows(d_bias, ds, count, N);
      product<V, V>(Matrix<V>{d_query + r * stride, stride}, ds, of(key), count, N, width);
      product<V, V, true>(Matrix<V>{d_value, stride}, e.transposed(), out, N, count, width);
      product<V, V, true>(Matrix<V>{d_key, stride}, ds.transposed(), of(query + r * stride), N, count, width);
    }
  }
};

// The weights of multi-head attention, [D, D] with outputs as rows; or their gradients.
template <class T>
struct AttentionWeights {
  T *query, *key, *value;
};

// Multi-head attention of x [N, D] to y [M, D], projections included, BPCM eq. (2)-(3). Head j has columns
// j * D / heads to (j + 1) * D / heads. One head's scores are x (Wq^T Wk) y^T: the product of the weights replaces the
// projection to keys.
template <class T>
class Attention {
  using V = Vector<T>;
  const int64_t N, M, D, heads;
  const AttentionWeights<const T> w;
  const bool keep;  // whether the backward pass finds the attention weights of the forward pass, or computes them
  std::vector<T> folded;  // Wk^T Wq, if there is one head
  std::vector<V> query, key, value, p, inverse;
  const V* keys = nullptr;

  Head<T> head(int64_t i) {
    const int64_t width = D / heads, c = i * width, kept = keep ? i : 0;
    return {N, M, width, &query[c], keys + c, &value[c], D, nullptr, nullptr, &p[kept * N * (M | 1)], &inverse[kept * N], keep};
  }

 public:
  Attention(int64_t N, int64_t M, int64_t D, int64_t heads, AttentionWeights<const T> w, bool keep)
      : N(N), M(M), D(D), heads(heads), w(w), keep(keep), folded(heads == 1 ? D * D : 0), query(N * D),
        key(heads == 1 ? 0 : M * D), value(M * D), p((keep ? heads * N : Head<T>::kBlock) * (M | 1)),
        inverse(keep ? heads * N : N) {
    for (int64_t h = 0; heads == 1 && h < D; ++h)
      for (int64_t e = 0; e < D; ++e)
        for (int64_t d = 0; d < D; ++d) folded[e * D + d] += w.key[h * D + e] * w.query[h * D + d];
  }

  void project(const V* x, const V* y) {
    ::project(query.data(), x, heads == 1 ? folded.data() : w.query, N, D, D);
    multiply(query.data(), T(kLog2E / std::sqrt(double(D / heads))) + V{}, N * D);
    if (heads > 1) ::project(key.data(), y, w.key, M, D, D);
    keys = heads > 1 ? key.data() : y;
    ::project(value.data(), y, w.value, M, D, D);
  }

  void forward(const V* x, const V* y, V* out) {
    project(x, y);
    for (int64_t i = 0; i < heads; ++i) head(i).forward(out + i * (D / heads));
  }

  // Memory that the backward passes of several units share
  struct Space {
    std::vector<V> d_query, d_key, d_value, d_p, d_weight;
    Space(int64_t N, int64_t M, int64_t D)
        : d_query(N * D), d_key(M * D), d_value(M * D), d_p(Head<T>::kBlock * (M | 1)), d_weight(kLanes<T> * D) {}
  };

  // After `project`, or `forward` if it kept the attention weights: adds to dx, dy and the weights' gradients from the
  // gradient of `out`, which it overwrites.
  void backward(const V* x, const V* y, V* d_out, V* dx, V* dy, AttentionWeights<T> d_w, Space& space) {
    auto& [d_query, d_key, d_value, d_p, d_weight] = space;
    std::fill(d_key.begin(), d_key.end(), V{});
    std::fill(d_value.begin(), d_value.end(), V{});
    for (int64_t i = 0, c = 0; i < heads; ++i, c += D / heads)
      head(i).backward(d_out + c, &d_query[c], &d_key[c], &d_value[c], d_p.data());
    multiply(d_query.data(), T(1 / std::sqrt(double(D / heads))) + V{}, N * D);
    multiply(d_key.data(), T(1 / kLog2E) + V{}, M * D);
    add_outer<T>(d_w.query, d_query.data(), D, x, D, N, d_weight.data());
    add_outer<T>(d_w.value, d_value.data(), D, y, D, M, d_weight.data());
    project_back<true>(dx, d_query.data(), heads == 1 ? folded.data() : w.query, N, D, D);
    project_back<true>(dy, d_value.data(), w.value, M, D, D);
    if (heads == 1) {
      for (int64_t i = 0; i < M * D; ++i) dy[i] += d_key[i];
    } else {
      add_outer<T>(d_w.key, d_key.data(), D, y, D, M, d_weight.data());
      project_back<true>(dy, d_key.data(), w.key, M, D, D);
    }
  }

  // Call it once with the sums over all samples: one head's gradients of query and key from that of Wk^T Wq, which
  // `backward` has put in the place of the query's.
  static void unfold(int64_t D, int64_t heads, AttentionWeights<const T> w, AttentionWeights<T> d_w) {
    if (heads > 1) return;
    const std::vector<T> d_folded(d_w.query, d_w.query + D * D);
    std::fill_n(d_w.query, D * D, T(0));
    std::fill_n(d_w.key, D * D, T(0));
    for (int64_t h = 0; h < D; ++h)
      for (int64_t e = 0; e < D; ++e)
        for (int64_t d = 0; d < D; ++d) {
          d_w.query[h * D + d] += w.key[h * D + e] * d_folded[e * D + d];
          d_w.key[h * D + e] += w.query[h * D + d] * d_folded[e * D + d];
        }
  }
};
