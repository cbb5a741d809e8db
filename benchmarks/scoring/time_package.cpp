// Times a package without Python. Each line of its input has a batch size and a number of calls; it answers with the
// mean score and the seconds of each call. Ids are those of a fixed sequence, so that Python can score the same rows.
//
//     time_package PACKAGE OPERATORS.so NUM_DENSE IDS_OF_THE_FIRST_KEY IDS_OF_THE_SECOND ...

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>

at::Tensor rows(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::string bytes(std::istreambuf_iterator<char>(stream), {});
  const int64_t start = 10 + static_cast<uint8_t>(bytes[8]) + 256 * static_cast<uint8_t>(bytes[9]);
  at::Tensor all = at::empty({static_cast<int64_t>(bytes.size()) - start}, at::kByte);
  std::copy(bytes.begin() + start, bytes.end(), all.data_ptr<uint8_t>());
  return all;
}

int main(int argc, char** argv) {
  const std::string folder = argv[1];
  for (const std::string& file : {std::string(argv[2]), folder + "/kernels.so"})
    if (std::filesystem::exists(file) && !dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL))
      return std::cerr << dlerror() << "\n", 1;
  const int64_t num_dense = std::stoll(argv[3]), num_keys = argc - 4;
  at::set_num_threads(1);
  c10::InferenceMode guard;
  torch::inductor::AOTIModelPackageLoader model(folder + "/model.pt2");
  const at::Tensor tables = rows(folder + "/rows_0.npy");
  std::cout.precision(9);
  for (int64_t batch, calls; std::cin >> batch >> calls;) {
    std::vector<at::Tensor> ids;
    for (int64_t key = 0; key < num_keys; ++key)
      ids.push_back((at::arange(batch, at::kLong) * 7919 + key * 104729).remainder(std::stoll(argv[4 + key])));
    const std::vector<at::Tensor> inputs{at::zeros({batch, num_dense}), at::cat(ids),
                                         at::ones({num_keys, batch}, at::kLong), tables};
    std::cout << model.run(inputs)[0].mean().item<double>();
    for (int64_t call = 0; call < calls; ++call) {
      const auto began = std::chrono::steady_clock::now();
      model.run(inputs);
      std::cout << " " << std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
    }
    std::cout << std::endl;
  }
}
