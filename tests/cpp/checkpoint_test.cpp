// SPDX-License-Identifier: Apache-2.0
//
// Checkpoints and states: what is read back, what is refused, and what a failed write leaves.
#include <retnet/io/checkpoint.h>
#include <retnet/io/safetensors.h>
#include <retnet/io/state.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "catch.h"
#include "io_cases.h"

using retnet::nn::DecoderLayerImpl;
using retnet::nn::load;
using retnet::nn::load_state;
using retnet::nn::save;

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
    // The same file with that name in its header.
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
  for (const auto& values : std::vector<std::vector<double>>{{-0.031, -1.5, -0.0002},
                                                             {-0.499, -0.0997, -0.001},
                                                             {-inf, 0, 0},
                                                             {-0.5, -0.1, -inf},
                                                             {-3e38, -1e-45, -1e-30}}) {
    write_safetensors(weights, old(torch::tensor(values, torch::kFloat32)));
    const auto model = load(folder.path);
    for (const int64_t index : {0, 1}) {
      const auto layer = model->body->layers->ptr<DecoderLayerImpl>(index);
      const auto raw = layer->retention->log_decay_raw, got = layer->retention->log_decay();
      for (int64_t h = 0; h < 3; ++h) {
        CAPTURE(values[h]);
        const double want = static_cast<float>(values[h]), found = got[h].item<double>();
        const double size = std::abs(raw[h].item<double>());
        if (want == 0 || want == -inf) {
          CHECK((found == want && size == 80));
        } else {
          const double reference = decay[h] == 0 ? -0x1p-10 : static_cast<float>(decay[h]);
          const double exact = std::clamp(std::log(want / reference), -79.5, 79.5);
          CHECK(raw[h].item<float>() == static_cast<float>(exact));  // never an end of the range
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
  says(both, "unexpected: " + key("1") + " (did you mean '" + key("1") + "_raw'?)");
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
  fs::remove(weights);  // as an interrupted first save leaves it
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
                  ": could not be written; any old file is unchanged: File too large");
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
