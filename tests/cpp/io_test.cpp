// SPDX-License-Identifier: Apache-2.0
//
// Files of tensors, options, models and states: what comes back, what is refused, what a failed
// write leaves.
#include <dirent.h>
#include <retnet/io/checkpoint.h>
#include <retnet/io/config.h>
#include <retnet/io/safetensors.h>
#include <retnet/io/state.h>
#include <retnet/nn/generate.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "catch.h"
#include "nn_cases.h"

namespace {

namespace fs = std::filesystem;
using retnet::io::SafetensorsFile;
using retnet::io::write_safetensors;
using retnet::nn::load;
using retnet::nn::load_state;
using retnet::nn::save;

/// A folder that is gone at the end of a test. std::filesystem's own walks over folders crash beside
/// torch's wheels, which export a part of another libstdc++.
class Folder {
 public:
  Folder() {
    std::string name = fs::temp_directory_path() / "retnet_io_XXXXXX";
    path = mkdtemp(name.data());
  }
  ~Folder() {
    if (std::system(("rm -r " + path.string()).c_str()) != 0) std::abort();
  }
  fs::path operator/(const char* name) const { return path / name; }

  fs::path path;
};

/// No file may grow beyond `bytes` while one lives: write(2) fails as on a full disk.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) {
    std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit = {bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_;
};

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  REQUIRE(text.find(from) != std::string::npos);
  return text.replace(text.find(from), from.size(), to);
}

/// A safetensors file with that header and so many bytes of data.
std::string file_of(const std::string& header, size_t data) {
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i));
  return length + header + std::string(data, 'x');
}

/// What a call that must fail says.
template <class Error>
std::string message(const std::function<void()>& call) {
  try {
    call();
  } catch (const c10::ValueError& error) {
    if constexpr (std::is_same_v<Error, c10::ValueError>) return error.what_without_backtrace();
  } catch (const std::system_error& error) {
    if constexpr (std::is_same_v<Error, std::system_error>) return error.what();
  }
  return "nothing of that kind raised";
}

std::vector<std::string> names(const fs::path& folder) {
  std::vector<std::string> found;
  DIR* const items = opendir(folder.c_str());
  REQUIRE(items);
  while (const dirent* item = readdir(items)) {
    if (item->d_name[0] != '.') found.emplace_back(item->d_name);
  }
  closedir(items);
  std::sort(found.begin(), found.end());
  return found;
}

bool same_parameters(const RetNetForCausalLM& a, const RetNetForCausalLM& b) {
  const auto others = b->named_parameters();
  const auto parameters = a->named_parameters();
  return parameters.keys() == others.keys() &&
         std::all_of(parameters.begin(), parameters.end(), [&](const auto& item) {
           return item.value().scalar_type() == others[item.key()].scalar_type() &&
                  torch::equal(item.value(), others[item.key()]);
         });
}

const std::vector<at::ScalarType> kDtypes = {torch::kFloat64,  torch::kFloat32, torch::kFloat16,
                                             torch::kBFloat16, torch::kInt64,   torch::kInt32};

}  // namespace

// Tensors
// -------------------------------------------------------------------------------------------------

TEST_CASE("safetensors: what is written comes back") {
  const Folder folder;
  std::vector<std::pair<std::string, torch::Tensor>> tensors;
  for (const auto dtype : kDtypes) {
    const auto name = c10::getDtypeNames(dtype).first;
    tensors.emplace_back(name, torch::randint(-99, 99, {3, 5}).to(dtype));
    tensors.emplace_back(name + " turned", torch::randint(-99, 99, {3, 5}).to(dtype).t());
  }
  tensors.emplace_back("\"quoted\" \xc3\xa9", torch::tensor(2.5));
  tensors.emplace_back("empty", torch::empty({4, 0}));
  write_safetensors(folder / "file", tensors, {{"step", "7"}});

  const SafetensorsFile file(folder / "file");
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"step", "7"}});
  REQUIRE(file.entries().size() == tensors.size());
  for (const auto& [name, tensor] : tensors) {
    CAPTURE(name);
    const auto* entry = file.find(name);
    REQUIRE(entry);
    CHECK(entry->offset % tensor.element_size() == 0);
    CHECK(torch::equal(file.read(*entry), tensor));
    CHECK(file.read(*entry).scalar_type() == tensor.scalar_type());
    for (const auto dtype : {tensor.scalar_type(), torch::kFloat64}) {
      const auto target = torch::full_like(tensor, 3, torch::dtype(dtype));
      file.read_into(*entry, target);
      CHECK(torch::equal(target, tensor.to(dtype)));
    }
  }
  CHECK(!file.find("step"));
  CHECK(std::is_sorted(file.entries().begin(), file.entries().end(),
                       [](const auto& a, const auto& b) { return a.offset < b.offset; }));
  CHECK(message<c10::ValueError>([&] { file.read_into(*file.find("empty"), torch::empty({4})); }) ==
        (folder / "file").string() + ": empty has shape [4, 0], the tensor to read it into [4]");
  CHECK_THROWS_WITH(
      write_safetensors(folder / "x", {{"a", torch::ones(1, torch::kBool)}}),
      ContainsSubstring("a must have dtype F64, F32, F16, BF16, I64 or I32, got bool"));
  CHECK(names(folder.path) == std::vector<std::string>{"file"});
}

TEST_CASE("safetensors: a bad file is refused, and named") {
  const Folder folder;
  const auto tensor = [](const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
    return R"("a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
           "}";
  };
  const auto a = tensor("F32", "[2]", "[0,8]");
  const std::string b = R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":)";
  const std::string whole = file_of("{" + a + "}", 8);
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"", "it has 0 bytes, fewer than 8"},
      {whole.substr(0, 7), "it has 7 bytes, fewer than 8"},
      {whole.substr(0, 30), "its header must lie in the file of 30 bytes"},
      {whole.substr(0, whole.size() - 1), "it must have 8 bytes of data, got 7"},
      {whole + "x", "it must have 8 bytes of data, got 9"},
      {std::string(64, '\xff'), "got a length of 18446744073709551615"},
      {file_of("nonsense", 0), "its header must be JSON"},
      {file_of("{\"a\":" + std::string(200'000, '[') + std::string(200'000, ']') + "}", 0),
       "its header must be nested at most 16 deep"},
      {file_of("{\"\xff\":1}", 0), "its header must be JSON"},
      {file_of("[1]", 0), "its header must be an object, got array"},
      {file_of("", 0), "its header must be JSON"},
      {file_of(R"({"__metadata__":{"a":1}})", 0), "its header must be JSON"},
      {file_of(R"({"a":1})", 0), "a must have dtype, shape and two data_offsets, got 1"},
      {file_of(R"({"a":{"dtype":"F32","shape":[1]}})", 4), "a must have dtype, shape and two"},
      {file_of("{" + tensor("F32", "2", "[0,8]") + "}", 8), "a must have dtype, shape and two"},
      {file_of("{" + tensor("F32", "[2]", "[0,8,8]") + "}", 8), "a must have dtype, shape and two"},
      {file_of(R"({"a":{"dtype":8,"shape":[8],"data_offsets":[0,8]}})", 8),
       "a must have a name as its dtype, got 8"},
      {file_of("{" + tensor("F8_E4M3", "[8]", "[8,0]") + "}", 8), "a must have 0 bytes of data"},
      {file_of("{" + tensor("F8_E4M3", "[8]", "[0,9]") + "}", 8), "it must have 9 bytes of data"},
      {file_of("{" + tensor("F32", "[-2]", "[0,8]") + "}", 8), "a must have sizes >= 0, got -2"},
      {file_of("{" + tensor("F32", "[2.0]", "[0,8]") + "}", 8), "a must have sizes >= 0, got 2.0"},
      {file_of("{" + tensor("F32", "[4294967296,4294967296]", "[0,0]") + "}", 0),
       "a must have a shape that fits in memory, got [4294967296,4294967296]"},
      {file_of("{" + tensor("F32", "[18446744073709551615]", "[0,8]") + "}", 8),
       "a must have sizes >= 0, got 18446744073709551615"},
      {file_of("{" + tensor("F32", "[2]", "[-8,0]") + "}", 8), "a must have offsets >= 0, got -8"},
      {file_of("{" + tensor("F32", "[2]", "[8,0]") + "}", 8),
       "a must have 8 bytes of data, got data_offsets [8,0]"},
      {file_of("{" + tensor("F32", "[3]", "[0,8]") + "}", 8), "a must have 12 bytes of data"},
      {file_of("{" + a + b + "[4,8]}}", 8), "b must begin at byte 8 of the data"},
      {file_of("{" + a + b + "[12,16]}}", 16), "b must begin at byte 8 of the data"},
      {file_of("{" + tensor("F32", "[2]", "[4,12]") + "}", 12), "a must begin at byte 0 of the"},
  };
  write(folder / "file", whole);
  CHECK(SafetensorsFile(folder / "file").entries().size() == 1);
  write(folder / "file", file_of("{" + tensor("F8_E4M3", "[8]", "[0,8]") + "}", 8));
  const SafetensorsFile other(folder / "file");  // opened, so that its reader can say what is wrong
  CHECK(other.entries()[0].dtype_name == "F8_E4M3");
  CHECK(message<c10::ValueError>([&] { other.read(other.entries()[0]); }) ==
        (folder / "file").string() +
            ": a must have dtype F64, F32, F16, BF16, I64 or I32, got F8_E4M3");
  for (const auto& [bytes, what] : bad) {
    CAPTURE(bytes);
    write(folder / "file", bytes);
    const auto said = message<c10::ValueError>([&] { SafetensorsFile(folder / "file"); });
    CHECK_THAT(said, ContainsSubstring((folder / "file").string() +
                                       ": must be a whole safetensors file: "));
    CHECK_THAT(said, ContainsSubstring(what));
    CHECK(said.find('\n') == std::string::npos);
  }
  CHECK(message<std::system_error>([&] { SafetensorsFile(folder / "none"); }) ==
        (folder / "none").string() + ": cannot be opened: No such file or directory");
  CHECK(message<std::system_error>([&] { SafetensorsFile(folder.path); }) ==
        folder.path.string() + ": cannot be read: Is a directory");
}

TEST_CASE("safetensors: a full disk leaves the old file") {
  const Folder folder;
  write_safetensors(folder / "file", {{"a", torch::ones({1000})}});
  const auto before = read(folder / "file");
  const auto said = message<std::system_error>([&] {
    const FullDisk full(2000);
    write_safetensors(folder / "file", {{"a", torch::zeros({1000})}});
  });
  CHECK(said == (folder / "file").string() +
                    ": could not be written, nothing was replaced: File too large");
  CHECK(read(folder / "file") == before);
  CHECK(names(folder.path) == std::vector<std::string>{"file"});
  CHECK(message<std::system_error>([&] {
          write_safetensors(folder / "no/file", {{"a", torch::zeros({1})}});
        }) == (folder / "no/file").string() +
                  ": could not be written, nothing was replaced: No such file or directory");
}

// Options
// -------------------------------------------------------------------------------------------------

TEST_CASE("config: options come back from JSON, number by number") {
  for (const auto& variant : variants()) {
    CAPTURE(variant.name);
    const auto text = retnet::io::to_json(variant.options());
    CHECK(retnet::io::to_json(retnet::io::options_from_json(text)) == text);
  }
  const double third = 1.0 / 3, tiny = 4.9406564584124654e-324;
  const auto text = retnet::io::to_json(small_options().norm_eps(third).embed_scale(tiny).decay(
      std::vector<double>{-third, -0.1, -0.0}));
  const auto options = retnet::io::options_from_json(text);
  CHECK(options.norm_eps() == third);
  CHECK(options.embed_scale() == tiny);
  CHECK(std::get<std::vector<double>>(options.decay()) == std::vector<double>{-third, -0.1, -0.0});
  // Switches have defaults, and a whole number is a number.
  const auto few = retnet::io::options_from_json(
      R"({"format_version": 1, "vocab_size": 13, "embed_dim": 12, "num_layers": 2, "num_heads": 3,
          "key_dim": 4, "value_dim": 6, "ffn_dim": 10, "residual_scale": 1, "norm": "rms"})");
  CHECK(retnet::io::to_json(few) == retnet::io::to_json(small_options().norm("rms")));
  // Editors on Windows write a byte-order mark.
  CHECK(retnet::io::to_json(retnet::io::options_from_json("\xef\xbb\xbf" + text)) == text);
}

TEST_CASE("config: bad JSON is refused") {
  const auto good = retnet::io::to_json(small_options());
  const auto with = [&](const std::string& from, const std::string& to) {
    return replaced(good, from, to);
  };
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"", "text must be JSON, got "},
      {std::string(200'000, '['), "JSON must be nested at most 16 deep"},
      {good.substr(0, 40), "text must be JSON, got "},
      {"{\"\xff\": 1}", "text must be JSON, got "},
      {with("1e-06", "1e999"), "text must be JSON, got "},
      {"[1]", "JSON must be an object, got array"},
      {with("\"format_version\": 1", "\"format_version\": 2"),
       "format_version must be an integer in 1..1, got 2"},
      {with("\"format_version\": 1", "\"format_version\": 1.0"),
       "format_version must be an integer in 1..1, got 1.0"},
      {with("\"format_version\": 1,", ""), "format_version must be an integer in 1..1, got null"},
      {with("\"norm\"", "\"nrom\""),
       "JSON must hold known fields only, got 'nrom' (did you mean 'norm'?)"},
      {with("\"norm\"", "\"embed_dims\""),
       "JSON must hold known fields only, got 'embed_dims' (did you mean 'embed_dim'?)"},
      {with("\"norm\"", "\"xyz\""), "JSON must hold known fields only, got 'xyz'"},
      {with("\"key_dim\": 4,", ""), "JSON must hold every size, missing: key_dim"},
      {with("\"key_dim\": 4", "\"key_dim\": 5"), "key_dim must be even, got 5"},
      {with("\"key_dim\": 4", "\"key_dim\": 4.0"), "key_dim must be a positive integer, got 4.0"},
      {with("\"key_dim\": 4", "\"key_dim\": true"), "key_dim must be a positive integer, got true"},
      {with("\"key_dim\": 4", "\"key_dim\": 18446744073709551615"),
       "key_dim must be a positive integer, got 18446744073709551615"},
      {with("\"pre_norm\": true", "\"pre_norm\": 1"), "pre_norm must be true or false, got 1"},
      {with("1e-06", "\"small\""), "group_norm_eps must be a finite number > 0, got \"small\""},
      {with("\"gelu\"", "1"), "activation must be a name, got 1"},
      {with("\"gelu\"", "\"relu\""), "activation must be one of \"gelu\", \"swish\", got 'relu'"},
      {with("\"power2\"", "null"), "decay must be a name or a list of numbers, got null"},
      {with("\"power2\"", "[-1, \"x\", 0]"), "decay must be a name or a list of numbers, got "},
      {with("\"power2\"", "[-1, 0]"), "decay must be one of"},
  };
  for (const auto& [text, what] : bad) {
    CAPTURE(text);
    const auto said = message<c10::ValueError>([&] { retnet::io::options_from_json(text); });
    CHECK_THAT(said, ContainsSubstring("RetNetOptions: " + what));
    CHECK(said.find('\n') == std::string::npos);
  }
}

// Models
// -------------------------------------------------------------------------------------------------

TEST_CASE("checkpoint: what is saved comes back") {
  for (const auto& variant : variants()) {
    CAPTURE(variant.name);
    const Folder folder;
    const auto model = random_model(variant.options());
    save(folder / "new/folder", model);
    CHECK(names(folder / "new/folder") ==
          std::vector<std::string>{"config.json", "model.safetensors"});
    torch::manual_seed(3);
    const auto draw = torch::rand({4});
    torch::manual_seed(3);
    auto again = load(folder / "new/folder");
    CHECK(torch::equal(torch::rand({4}), draw));  // no weights were drawn
    CHECK(same_parameters(again, model));
    const auto ids = random_ids(2, 9);
    auto copy = std::dynamic_pointer_cast<retnet::nn::RetNetForCausalLMImpl>(again->clone());
    CHECK(torch::equal(copy->forward(ids).logits, RetNetForCausalLM(model)(ids).logits));
  }
}

TEST_CASE("checkpoint: the dtype is the file's or the one asked for") {
  const Folder folder;
  auto model = random_model(small_options().learnable_decay(true));
  model->to(torch::kBFloat16);
  save(folder.path, model);
  CHECK(same_parameters(load(folder.path), model));
  const auto wide = load(folder.path, torch::kCPU, torch::kFloat64);
  model->to(torch::kFloat64);
  CHECK(same_parameters(wide, model));
}

TEST_CASE("checkpoint: a bad one is refused, and the file named") {
  const Folder folder;
  const auto config = folder / "config.json", weights = folder / "model.safetensors";
  save(folder.path, random_model(small_options()));
  const auto good = read(config), whole = read(weights);
  auto tensors = random_model(small_options())->named_parameters().pairs();
  const auto norm = std::find_if(tensors.begin(), tensors.end(),
                                 [](const auto& item) { return item.first == "norm.weight"; });
  REQUIRE(norm != tensors.end());
  const auto says = [&](const fs::path& path, const std::string& what) {
    const auto said = message<c10::ValueError>([&] { load(folder.path); });
    CHECK_THAT(said, ContainsSubstring(path.string() + ": ") && ContainsSubstring(what));
    CHECK(said.find('\n') == std::string::npos);
    write(config, good);
    write(weights, whole);
  };

  write(config, replaced(good, "\"norm\"", "\"nrom\""));
  says(config, "got 'nrom' (did you mean 'norm'?)");
  write(config, replaced(good, "\"key_dim\": 4", "\"key_dim\": 3"));
  says(config, "RetNetOptions: key_dim must be even, got 3");
  write(config, replaced(good, "\"ffn_dim\": 10", "\"ffn_dim\": 11"));
  says(
      weights,
      "must hold the weights of its configuration; layers.0.ffn.down_proj.weight must have shape "
      "[12, 11], got [12, 10], layers.0.ffn.up_proj.weight must have shape [11, 12], got [10, 12], "
      "layers.1.ffn.down_proj.weight must have shape [12, 11], got [12, 10] and 1 more");
  write(weights, whole.substr(0, 3000));
  says(weights, "must be a whole safetensors file");
  norm->first = "norm.wieght";
  write_safetensors(weights, tensors);
  says(weights, "missing: norm.weight; unexpected: norm.wieght (did you mean 'norm.weight'?)");
  *norm = {"norm.weight", torch::ones({12}, torch::kInt64)};
  write_safetensors(weights, tensors);
  const auto integers = read(weights);
  for (const std::string name : {"I64", "I8", "U8", "BOOL", "C64", "F8_E4M3", "F4"}) {
    // The same file, whose header gives that name.
    size_t length = 0;
    for (size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(integers[i]);
    const auto header = replaced(integers.substr(8, length), R"("norm.weight":{"dtype":"I64")",
                                 R"("norm.weight":{"dtype":")" + name + "\"");
    write(weights, file_of(header, 0) + integers.substr(8 + length));
    says(weights, "norm.weight must be floating point (F64, F32, F16 or BF16), got " + name);
  }
  tensors.erase(norm);
  write_safetensors(weights, tensors);
  says(weights, "must hold the weights of its configuration; missing: norm.weight");
  write_safetensors(weights, {{"a", torch::ones({1})}});
  says(weights,
       "missing: embed_tokens.weight, layers.0.ffn.down_proj.weight, "
       "layers.0.ffn.up_proj.weight and 23 more; unexpected: a");

  fs::remove(weights);
  CHECK(message<std::system_error>([&] { load(folder.path); }) ==
        weights.string() + ": cannot be opened: No such file or directory");
  CHECK(message<std::system_error>([&] { load(folder / "none"); }) ==
        (folder / "none/config.json").string() + ": cannot be opened: No such file or directory");
}

TEST_CASE("checkpoint: other dtypes are not made") {
  const Folder folder;
  save(folder.path, random_model(small_options()));
  for (const auto& [dtype, name] : std::vector<std::pair<torch::Dtype, std::string>>{
           {torch::kInt8, "int8"},
           {torch::kBool, "bool"},
           {torch::kComplexFloat, "complex64"},
           {torch::kFloat8_e4m3fn, "float8_e4m3fn"}}) {
    CHECK(message<c10::ValueError>([&, dtype = dtype] { load(folder.path, torch::kCPU, dtype); }) ==
          "load: dtype must be float64, float32, float16 or bfloat16, got " + name);
  }
}

TEST_CASE("checkpoint: the decay of older versions is converted") {
  const Folder folder;
  const auto weights = folder / "model.safetensors";
  const std::vector<double> decay = {-0.5, -0.1, 0};
  const auto key = [](const char* layer) {
    return "layers." + std::string(layer) + ".retention.log_decay";
  };
  const auto old = [&](const torch::Tensor& values) {
    auto tensors = random_model(small_options().learnable_decay(true).decay(decay))
                       ->named_parameters()
                       .pairs();
    for (auto& [name, tensor] : tensors) {
      if (name != key("0") + "_raw" && name != key("1") + "_raw") continue;
      name.resize(name.size() - 4);
      tensor = values;
    }
    return tensors;
  };
  const double inf = std::numeric_limits<double>::infinity();
  save(folder.path, random_model(small_options().learnable_decay(true).decay(decay)));
  for (const auto& values : std::vector<std::vector<double>>{
           {-0.031, -1.5, -0.0002}, {-inf, 0, 0}, {-0.5, -0.1, -inf}, {-3e38, -1e-45, -1e-30}}) {
    write_safetensors(weights, old(torch::tensor(values, torch::kFloat32)));
    const auto model = load(folder.path);
    for (const int64_t index : {0, 1}) {
      const auto layer = model->body->layer(index);
      const auto raw = layer->retention->log_decay_raw, got = layer->retention->log_decay();
      for (int64_t h = 0; h < 3; ++h) {
        CAPTURE(values[h]);
        const double want = static_cast<float>(values[h]), found = got[h].item<double>();
        const double size = std::abs(raw[h].item<double>());
        if (want == 0 || want == -inf) {
          CHECK((found == want && size == 80));
        } else {
          CHECK(size <= 79.5);  // never an end
          CHECK((size == 79.5 || std::abs(found / want - 1) < 0x1p-23 * (1 + size)));
        }
      }
    }
    save(folder / "new", model);
    CHECK(SafetensorsFile(folder / "new/model.safetensors").find(key("1") + "_raw"));
    CHECK(!SafetensorsFile(folder / "new/model.safetensors").find(key("1")));
    CHECK(same_parameters(load(folder / "new"), model));
  }

  const auto says = [&](const std::vector<std::pair<std::string, torch::Tensor>>& tensors,
                        const std::string& what) {
    write_safetensors(weights, tensors);
    const auto said = message<c10::ValueError>([&] { load(folder.path); });
    CHECK_THAT(said, ContainsSubstring(weights.string() + ": ") && ContainsSubstring(what));
    CHECK(said.find('\n') == std::string::npos);
  };
  const auto good = torch::tensor({-1.0f, -1.0f, -1.0f});
  says(old(torch::tensor({-1.0f, 1e-6f, -1.0f})),
       key("0") + " must lie in [-inf, 0], got 1e-06 in head 1");
  says(old(torch::full({3}, std::nan(""))), key("0") + " must lie in [-inf, 0], got nan in head 0");
  says(old(torch::ones({4})), key("0") + " must have shape [3], got [4]");
  says(old(torch::ones({3}, torch::kInt32)),
       key("0") + " must be floating point (F64, F32, F16 or BF16), got I32");
  auto both = old(good);
  both.emplace_back(key("1") + "_raw", good);
  says(both, "unexpected: " + key("1"));
  auto none = old(good);
  none.erase(std::find_if(none.begin(), none.end(),
                          [&](const auto& item) { return item.first == key("1"); }));
  says(none, "missing: " + key("1") + "_raw");
}

TEST_CASE("checkpoint: what else a folder holds is not overwritten") {
  const Folder folder;
  const auto config = folder / "config.json", weights = folder / "model.safetensors";
  const auto model = random_model(small_options()),
             other = random_model(small_options().norm("rms"));
  save(folder.path, model);
  CHECK(message<c10::ValueError>([&] { save(folder.path, other); }) ==
        folder.path.string() +
            ": holds a checkpoint of another configuration (norm differs); save "
            "elsewhere or remove it first");
  CHECK(same_parameters(load(folder.path), model));
  fs::remove(weights);  // as a first save that was cut short
  save(folder.path, other);
  CHECK(same_parameters(load(folder.path), other));
  write(config, "{\"model_type\": \"other\"}");
  CHECK_THAT(message<c10::ValueError>([&] { save(folder.path, model); }),
             ContainsSubstring(config.string()) && ContainsSubstring("; not replaced"));
  fs::remove(config);
  CHECK(message<c10::ValueError>([&] { save(folder.path, model); }) ==
        folder.path.string() + ": holds a model.safetensors without config.json; not replaced");
}

TEST_CASE("checkpoint: a full disk leaves the old one") {
  const Folder folder;
  const auto model = random_model(small_options());
  save(folder.path, model);
  auto changed = random_model(small_options());
  changed->to(torch::kFloat32);
  const auto half = fs::file_size(folder / "model.safetensors") / 4;
  CHECK(message<std::system_error>([&] {
          const FullDisk full(half);
          save(folder.path, changed);
        }) == (folder / "model.safetensors").string() +
                  ": could not be written, nothing was replaced: File too large");
  CHECK(same_parameters(load(folder.path), model));
  save(folder.path, changed);
  CHECK(same_parameters(load(folder.path), changed));
}

// States
// -------------------------------------------------------------------------------------------------

TEST_CASE("state: a text goes on from a file") {
  const Folder folder;
  auto model = random_model(small_options());
  const torch::NoGradGuard no_grad;
  const auto ids = random_ids(2, 12);
  save(folder / "state", model(ids.slice(1, 0, 8)).state);
  const auto state = load_state(folder / "state");
  fs::remove(folder / "state");
  CHECK(torch::equal(state.positions, torch::tensor({8, 8}, torch::kInt64)));
  CHECK(close(model(ids.slice(1, 8), state).logits, model(ids).logits.slice(1, 8)));
}

TEST_CASE("state: a bad file is refused, and named") {
  const Folder folder;
  const auto path = folder / "state";
  const auto ones = [](std::vector<int64_t> sizes, at::ScalarType dtype) {
    return torch::ones(sizes, dtype);
  };
  const auto retention = ones({1, 2, 3, 4, 6}, torch::kFloat32);
  const auto says = [&](std::vector<std::pair<std::string, torch::Tensor>> tensors,
                        std::map<std::string, std::string> metadata, const std::string& what) {
    write_safetensors(path, std::move(tensors), metadata);
    CHECK(message<c10::ValueError>([&] { load_state(path); }) == path.string() + ": " + what);
  };
  const std::string need =
      "must hold retention [L, B, H, K, V] float32 or float64 and positions [B] int64, got ";
  says({{"retention", retention}}, {},
       "must hold the tensors retention and positions, got ['retention']");
  says({{"a", retention}}, {}, "must hold the tensors retention and positions, got ['a']");
  says({{"retention", retention}, {"positions", ones({3}, torch::kInt64)}}, {},
       need + "[1, 2, 3, 4, 6] float32 and [3] int64");
  says({{"retention", retention}, {"positions", ones({2}, torch::kInt32)}}, {},
       need + "[1, 2, 3, 4, 6] float32 and [2] int32");
  says(
      {{"retention", ones({2, 3, 4, 6}, torch::kFloat32)}, {"positions", ones({3}, torch::kInt64)}},
      {}, need + "[2, 3, 4, 6] float32 and [3] int64");
  says({{"retention", retention.to(torch::kFloat16)}, {"positions", ones({2}, torch::kInt64)}}, {},
       need + "[1, 2, 3, 4, 6] float16 and [2] int64");
  says({{"a", retention}}, {{"format_version", "2"}}, "format_version must be <= 1, got 2");
  says({{"a", retention}}, {{"format_version", "x"}}, "format_version must be <= 1, got x");
  save(path, small_options().make_state(2));
  write(path, read(path).substr(0, 200));
  CHECK_THAT(message<c10::ValueError>([&] { load_state(path); }),
             ContainsSubstring(path.string() + ": must be a whole safetensors file"));
}
