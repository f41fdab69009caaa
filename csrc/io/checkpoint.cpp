// SPDX-License-Identifier: Apache-2.0
#include "io/checkpoint.h"

#include <algorithm>
#include <map>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "io/config.h"
#include "io/files.h"
#include "io/hint.h"
#include "io/safetensors.h"
#include "nn/option_fields.h"
#include "nn/retention_constants.h"
#include "nn/skip_init.h"

namespace retnet::nn {

namespace {

namespace fs = std::filesystem;

constexpr const char* kConfig = "config.json";
constexpr const char* kWeights = "model.safetensors";
constexpr std::string_view kRaw = "_raw";

/// True for the dtypes that weights may have.
bool is_weight(at::ScalarType dtype) {
  return dtype == at::kDouble || dtype == at::kFloat || dtype == at::kHalf ||
         dtype == at::kBFloat16;
}

RetNetOptions read_options(const fs::path& folder) {
  const auto path = folder / kConfig;
  const auto text = io::read_file(path);
  try {
    return io::options_from_json(text);
  } catch (const c10::ValueError& error) {
    C10_THROW_ERROR(ValueError, path.string() + ": " + error.what_without_backtrace());
  }
}

/// The first few names, and how many more there are.
std::string listed(std::vector<std::string> names) {
  constexpr size_t kShown = 3;
  std::sort(names.begin(), names.end());
  std::string text;
  for (size_t i = 0; i < std::min(kShown, names.size()); ++i) text += (i ? ", " : "") + names[i];
  if (names.size() > kShown) text += " and " + std::to_string(names.size() - kShown) + " more";
  return text;
}

/// The entry of the file for the parameter `name`: a tensor of that name or, for a `log_decay_raw`,
/// the `log_decay` of older versions. Null if there is neither.
const io::SafetensorsEntry* stored(const io::SafetensorsFile& file, const std::string& name) {
  const auto* entry = file.find(name);
  if (!entry && name.ends_with(kRaw)) {
    entry = file.find(name.substr(0, name.size() - kRaw.size()));
  }
  return entry;
}

/// Raises c10::ValueError if the file does not hold the weights of a model of `options`.
void check(const io::SafetensorsFile& file, const RetNetOptions& options) {
  const auto expected =
      RetNetForCausalLM(options, torch::TensorOptions(torch::kMeta))->named_parameters();
  const auto keys = expected.keys();
  std::vector<std::string> missing, unexpected, misshapen, mistyped;
  std::map<std::string, const torch::Tensor*> places;
  for (const auto& item : expected) {
    const auto* entry = stored(file, item.key());
    if (!entry) {
      missing.push_back(item.key());
    } else {
      places[entry->name] = &item.value();
    }
  }
  for (const auto& entry : file.entries()) {
    const auto place = places.find(entry.name);
    if (place == places.end()) {
      unexpected.push_back(entry.name + io::hint(entry.name, missing.empty() ? keys : missing));
      continue;
    }
    if (place->second->sizes() != entry.shape) {
      misshapen.push_back(c10::str(entry.name, " must have shape ", place->second->sizes(),
                                   ", got ", c10::IntArrayRef(entry.shape)));
    }
    if (!is_weight(entry.dtype)) {
      mistyped.push_back(entry.name + " must be floating point (F64, F32, F16 or BF16), got " +
                         entry.dtype_name);
    }
  }
  std::string wrong;
  const auto add = [&](const char* what, const std::vector<std::string>& names) {
    if (!names.empty()) wrong += (wrong.empty() ? "" : "; ") + (what + listed(names));
  };
  add("missing: ", missing);
  add("unexpected: ", unexpected);
  add("", misshapen);
  add("", mistyped);
  TORCH_CHECK_VALUE(wrong.empty(), file.path().string(),
                    ": must hold the weights of its configuration; ", wrong);
}

/// The first field in which two options differ, or "" if they are equal.
std::string difference(const RetNetOptions& a, const RetNetOptions& b) {
  std::string first;
  for_each_field(a, [&]<class T>(const char* name, const T& field) {
    for_each_field(b, [&]<class U>(const char* other_name, const U& other) {
      if constexpr (std::is_same_v<T, U>) {
        if (first.empty() && std::string_view(name) == other_name && field != other) first = name;
      }
    });
  });
  return first;
}

/// Whether config.json must be written. Raises an error if the folder holds something else.
bool is_fresh(const fs::path& folder, const RetNetOptions& options) {
  const bool has_weights = fs::exists(folder / kWeights);
  if (!fs::exists(folder / kConfig)) {
    TORCH_CHECK_VALUE(!has_weights, folder.string(), ": holds a ", kWeights, " without ", kConfig,
                      "; not replaced");
    return true;
  }
  std::string field;
  try {
    field = difference(read_options(folder), options);
  } catch (const c10::ValueError& error) {
    TORCH_CHECK_VALUE(false, error.what_without_backtrace(), "; not replaced");
  }
  TORCH_CHECK_VALUE(field.empty() || !has_weights, folder.string(),
                    ": holds a checkpoint of another configuration (", field,
                    " differs); save elsewhere or remove it first");
  return !field.empty();  // the first save was interrupted
}

}  // namespace

void save(const fs::path& folder, const RetNetForCausalLM& model) {
  const bool fresh = is_fresh(folder, model->options);
  fs::create_directories(folder);
  if (fresh) {
    const auto text = io::to_json(model->options);
    io::replace_file(folder / kConfig,
                     [&](const io::Write& write) { write(text.data(), text.size()); });
  }
  io::write_safetensors(folder / kWeights, model->named_parameters().pairs());
}

RetNetForCausalLM load(const fs::path& folder, const torch::Device& device,
                       std::optional<torch::Dtype> dtype) {
  TORCH_CHECK_VALUE(!dtype || is_weight(*dtype),
                    "load: dtype must be float64, float32, float16 or bfloat16, got ",
                    c10::getDtypeNames(*dtype).first);
  const auto options = read_options(folder);
  const io::SafetensorsFile file(folder / kWeights);
  check(file, options);
  const auto kept = file.find("embed_tokens.weight")->dtype;
  const SkipInit skip_init;
  RetNetForCausalLM model(options, torch::TensorOptions(device).dtype(dtype.value_or(kept)));
  for (const auto& item : model->named_parameters()) {
    const auto& entry = *stored(file, item.key());
    if (entry.name == item.key()) {
      file.read_into(entry, item.value());
      continue;
    }
    const auto log_decay = file.read(entry);
    check_log_decay(file.path().string() + ": " + entry.name, log_decay);
    const auto reference = RetentionConstants(options).on(torch::kCPU).reference;
    const torch::NoGradGuard no_grad;
    item.value().copy_(raw_of(log_decay, reference));
  }
  return model;
}

}  // namespace retnet::nn
