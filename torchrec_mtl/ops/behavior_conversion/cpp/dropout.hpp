// Dropout whose mask is a function of a seed and of the element's place, so no pass has to store it.

#pragma once

#include <cmath>

#include "../../cpp/lanes.hpp"

template <class T>
struct Draws;
template <>
struct Draws<float> {
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Draws<double> {
  typedef uint32_t Bits __attribute__((vector_size(kVectorBytes / 2)));
};

template <class T>
class Dropout {
  using V = Vector<T>;
  using Bits = typename Draws<T>::Bits;
  const uint64_t seed;
  const uint32_t threshold;  // draws below are dropped
  const T scale;

  // The generator of Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014): every bit of the
  // result depends on every bit of x.
  static uint64_t mixed(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
    x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
    return x ^ (x >> 31);
  }

 public:
  Dropout(int64_t seed, double p)
      : seed(seed), threshold(static_cast<uint32_t>(std::llround(p * 4294967296.0))), scale(T(1 / (1 - p))) {}

  // out = x [size] with dropout, in the stream `stream` of each sample
  void apply(V* out, const V* x, int64_t size, const Group<T>& group, uint64_t stream) const {
    if (!threshold) {
      std::copy(x, x + size, out);
      return;
    }
    Bits first = {}, second = {};  // the sample's key
    for (int64_t lane = 0; lane < group.present; ++lane) {
      const uint64_t key = mixed(mixed(seed ^ mixed(stream)) + group.sample[lane]);
      first[lane] = static_cast<uint32_t>(key), second[lane] = key >> 32;
    }
    for (int64_t i = 0; i < size; ++i) {
      Bits bits = first + static_cast<uint32_t>(i) * 0x9e3779b9u;
      bits = (bits ^ (bits >> 16)) * 0x7feb352du;
      bits = ((bits ^ (bits >> 15)) + second) * 0x846ca68bu;
      bits ^= bits >> 16;
      out[i] = x[i] * (__builtin_convertvector(bits >= threshold, V) * -scale);  // true is -1
    }
  }
};
