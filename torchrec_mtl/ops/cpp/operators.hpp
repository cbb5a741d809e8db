// How the kernels are operators of PyTorch's, by its stable ABI: one binary for every version from 2.10 on.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Tensor = torch::stable::Tensor;
using Sizes = std::vector<int64_t>;

inline Sizes sizes(const Tensor& x) {
  const auto of_x = x.sizes();
  return Sizes(of_x.data(), of_x.data() + of_x.size());
}

inline std::string text(const Sizes& sizes) {
  std::string list = "[";
  for (const int64_t size : sizes) list += (list.size() > 1 ? ", " : "") + std::to_string(size);
  return list + "]";
}

// Raises a RuntimeError whose message is the parts together.
template <class... Parts>
inline void check(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline void check_sizes(const char* name, const Tensor& x, const Sizes& expected) {
  check(sizes(x) == expected, "`", name, "` (of shape ", text(sizes(x)), ") must be of shape ", text(expected));
}

// Calls run(T()) with the type of a tensor.
template <class Run>
inline void dispatch(const Tensor& x, Run run) {
  using torch::headeronly::ScalarType;
  const auto type = x.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double, "all tensors must be float32 or float64");
  type == ScalarType::Float ? run(float()) : run(double());
}

// Tensors as the kernels read them: contiguous, on the CPU, all of one type.
class Read {
  std::vector<Tensor> kept;

 public:
  template <class... Tensors>
  explicit Read(const Tensors&... each) {
    (add(each), ...);
  }
  void add(const std::vector<Tensor>& list) {
    for (const Tensor& x : list) add(x);
  }
  void add(const Tensor& x) {
    kept.push_back(torch::stable::contiguous(x));
    check(x.is_cpu() && x.scalar_type() == kept[0].scalar_type(), "all tensors must be on the CPU and of one type");
  }
  template <class T>
  const T* at(size_t i) const {
    return static_cast<const T*>(kept[i].data_ptr());
  }
  template <class T>
  std::vector<const T*> pointers() const {
    std::vector<const T*> all;
    for (size_t i = 0; i < kept.size(); ++i) all.push_back(at<T>(i));
    return all;
  }
  template <class Run>
  void dispatch(Run run) const {
    ::dispatch(kept[0], run);
  }
};

template <class T>
inline T* written(const Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

inline Tensor empty(const Tensor& like, const Sizes& sizes) {
  return torch::stable::new_empty(like, {sizes.data(), sizes.size()});
}

inline int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

}  // namespace
