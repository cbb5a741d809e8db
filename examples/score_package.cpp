// Scores a file with a package, without Python: rows of tab-separated values in, probabilities out.
//
//     T=$(python -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)')
//     F=$(python -c 'import pathlib, fbgemm_gpu; print(pathlib.Path(fbgemm_gpu.__file__).parent)')
//     c++ -std=c++20 -O2 -I$T/include -I$T/include/torch/csrc/api/include examples/score_package.cpp -o score_package
//         -L$T/lib -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10 -ldl -Wl,-rpath,$T/lib        (one line)
//     ./score_package PACKAGE $F/fbgemm_gpu_tbe_inference.so < rows.tsv > scores.tsv
//
// The first line names the columns: the dense ones, under any names, then the package's keys. A cell of a key has its
// ids, separated by commas. A package is native code: compare its files with the hashes in its manifest before this
// program sees it, and take it only from whom you trust.

#include <ATen/ATen.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iostream>
#include <regex>
#include <sstream>

namespace {

constexpr int64_t kBatch = 1024;  // rows

[[noreturn]] void fail(const std::string& sentence) {
  std::cerr << "error: " << sentence << "\n";
  std::exit(2);
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  if (!text.empty() && text.back() == separator) parts.emplace_back();
  return parts;
}

// What this program needs of a manifest.
struct Manifest {
  std::string text;
  std::vector<std::string> keys, tasks;
  int64_t num_dense, num_rows_files;

  explicit Manifest(const std::filesystem::path& file) {
    std::ifstream stream(file);
    if (!stream) fail(file.string() + ": there is no such file");
    text.assign(std::istreambuf_iterator<char>(stream), {});
    keys = strings(section("keys"));
    const std::string of_tasks = section("tasks");
    const std::regex name("\"name\": \"([^\"]*)\"");
    for (std::sregex_iterator found(of_tasks.begin(), of_tasks.end(), name), end; found != end; ++found)
      tasks.push_back((*found)[1]);
    num_dense = number("num_dense"), num_rows_files = number("num_rows_files");
    if (text.find("\"is_weighted\": true") != text.npos) fail(file.string() + ": ids have weights, which rows here lack");
  }

 private:
  std::string section(const std::string& name) const {  // of the list called so
    const size_t start = text.find("\"" + name + "\": [") + name.size() + 5;
    return text.substr(start, text.find(']', start) - start);
  }
  int64_t number(const std::string& name) const {
    return std::stoll(text.substr(text.find("\"" + name + "\": ") + name.size() + 4));
  }
  static std::vector<std::string> strings(const std::string& list) {
    std::vector<std::string> found;
    const std::regex quoted("\"([^\"]*)\"");
    for (std::sregex_iterator each(list.begin(), list.end(), quoted), end; each != end; ++each)
      found.push_back((*each)[1]);
    return found;
  }
};

// The bytes of an array of NumPy's, mapped: processes that score with one package share them.
at::Tensor mapped(const std::filesystem::path& file) {
  const int descriptor = open(file.c_str(), O_RDONLY);
  struct stat status;
  if (descriptor < 0 || fstat(descriptor, &status)) fail(file.string() + ": cannot be opened");
  void* memory = mmap(nullptr, status.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, descriptor, 0);
  close(descriptor);
  if (memory == MAP_FAILED) fail(file.string() + ": cannot be mapped");
  uint8_t* bytes = static_cast<uint8_t*>(memory);
  const int64_t start = 10 + bytes[8] + 256 * bytes[9];  // after the header of version 1
  return at::from_blob(bytes + start, {status.st_size - start}, at::kByte);
}

// Rows as the package takes them: ids of the first key for all rows, then of the next.
struct Batch {
  int64_t num_dense, num_rows = 0;
  std::vector<float> dense;
  std::vector<std::vector<int64_t>> ids, lengths;

  Batch(int64_t num_dense, size_t num_keys) : num_dense(num_dense), ids(num_keys), lengths(num_keys) {}

  void add(const std::string& line, int64_t number) {
    const auto cells = split(line, '\t');
    if (cells.size() != num_dense + ids.size())
      fail("line " + std::to_string(number) + ": must have " + std::to_string(num_dense + ids.size()) + " cells, not " +
           std::to_string(cells.size()));
    try {
      for (int64_t column = 0; column < num_dense; ++column) dense.push_back(std::stof(cells[column]));
      for (size_t key = 0; key < ids.size(); ++key) {
        const auto of_key = split(cells[num_dense + key], ',');
        for (const auto& id : of_key) ids[key].push_back(std::stoll(id));
        lengths[key].push_back(static_cast<int64_t>(of_key.size()));
      }
    } catch (const std::logic_error&) {
      fail("line " + std::to_string(number) + ": a cell is no number");
    }
    ++num_rows;
  }

  std::vector<at::Tensor> tensors() const {
    std::vector<int64_t> all_ids, all_lengths;
    for (const auto& of_key : ids) all_ids.insert(all_ids.end(), of_key.begin(), of_key.end());
    for (const auto& of_key : lengths) all_lengths.insert(all_lengths.end(), of_key.begin(), of_key.end());
    return {at::tensor(dense, at::kFloat).view({num_rows, num_dense}), at::tensor(all_ids, at::kLong),
            at::tensor(all_lengths, at::kLong).view({static_cast<int64_t>(ids.size()), num_rows})};
  }
};

void load_operators(const std::string& file) {
  if (!dlopen(file.c_str(), RTLD_NOW | RTLD_GLOBAL)) fail(dlerror());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) fail("score_package PACKAGE FBGEMM_OPERATORS < rows.tsv > scores.tsv");
  const std::filesystem::path folder = argv[1];
  const Manifest manifest(folder / "manifest.json");
  load_operators(argv[2]);
  if (exists(folder / "kernels.so")) load_operators(std::filesystem::absolute(folder / "kernels.so"));
  c10::InferenceMode guard;
  torch::inductor::AOTIModelPackageLoader model(folder / "model.pt2");
  std::vector<at::Tensor> tables;
  for (int64_t i = 0; i < manifest.num_rows_files; ++i)
    tables.push_back(mapped(folder / ("rows_" + std::to_string(i) + ".npy")));

  std::string line;
  std::getline(std::cin, line);
  const auto names = split(line, '\t');
  if (names.size() != manifest.num_dense + manifest.keys.size() ||
      !std::equal(manifest.keys.begin(), manifest.keys.end(), names.begin() + manifest.num_dense))
    fail("line 1: must name " + std::to_string(manifest.num_dense) + " dense columns and then the package's keys");
  for (size_t task = 0; task < manifest.tasks.size(); ++task) std::cout << (task ? "\t" : "") << manifest.tasks[task];
  std::cout << "\n";
  std::cout.precision(9);  // a float32 survives

  int64_t number = 1;
  for (bool more = true; more;) {
    Batch batch(manifest.num_dense, manifest.keys.size());
    while (batch.num_rows < kBatch && (more = static_cast<bool>(std::getline(std::cin, line)))) batch.add(line, ++number);
    if (!batch.num_rows) break;
    auto inputs = batch.tensors();
    inputs.insert(inputs.end(), tables.begin(), tables.end());
    at::Tensor scores;
    try {
      scores = model.run(inputs)[0];
    } catch (const std::exception& error) {
      fail("lines to " + std::to_string(number) + ": cannot be scored; is an id outside its table? " +
           split(error.what(), '\n')[0]);
    }
    scores = scores.contiguous();
    const float* score = scores.const_data_ptr<float>();
    for (int64_t cell = 1; cell <= scores.numel(); ++cell)
      std::cout << *score++ << (cell % scores.size(1) ? '\t' : '\n');
  }
}
