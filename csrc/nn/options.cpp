// SPDX-License-Identifier: Apache-2.0
#include "nn/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <initializer_list>
#include <utility>

namespace retnet::nn {

namespace {

// repr() prints values as Python does, so that a bad value gives the same message in both.
std::string repr(int64_t value) { return std::to_string(value); }

std::string repr(double value) {
  char digits[32];
  const auto end = std::to_chars(std::begin(digits), std::end(digits), value).ptr;
  std::string text(digits, end);
  return text.find_first_of(".en") == std::string::npos ? text + ".0" : text;
}

std::string repr(const std::string& value) { return "'" + value + "'"; }

std::string repr(const std::vector<double>& values) {
  std::string text = "[";
  for (const double value : values) text += (text.size() > 1 ? ", " : "") + repr(value);
  return text + "]";
}

using Names = std::initializer_list<std::string_view>;

template <typename Range>
std::string quoted(const Range& names) {
  std::string text;
  for (const auto& name : names) {
    text += (text.empty() ? "\"" : ", \"") + std::string(name) + "\"";
  }
  return text;
}

bool contains(const Names& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

void require(bool ok, const char* field, const std::string& requirement, const std::string& value) {
  TORCH_CHECK_VALUE(ok, "RetNetOptions: ", field, " must be ", requirement, ", got ", value);
}

void require_size(const char* field, int64_t value) {
  const int64_t most = std::string_view(field) == "num_layers" ? 65536 : 2147483647;
  require(value > 0, field, "a positive integer", repr(value));
  require(value <= most, field, "<= " + std::to_string(most), repr(value));
}

void require_positive(const char* field, double value) {
  require(std::isfinite(value) && value > 0, field, "a finite number > 0", repr(value));
}

void require_choice(const char* field, const Names& names, const std::string& value) {
  require(contains(names, value), field, "one of " + quoted(names), repr(value));
}

void require_list(const char* field, const Names& names, const char* what, int64_t length,
                  const NameOrList& value) {
  const auto need = "one of " + quoted(names) + " or " + what + " (" + std::to_string(length) + ")";
  if (const auto* name = std::get_if<std::string>(&value)) {
    require(contains(names, *name), field, need, repr(*name));
    return;
  }
  const auto& list = std::get<std::vector<double>>(value);
  const bool finite =
      std::all_of(list.begin(), list.end(), [](double x) { return std::isfinite(x); });
  require(static_cast<int64_t>(list.size()) == length && finite, field, need, repr(list));
}

/// The sizes in the paper: K = 256, V = 512, F = 2d, and the gammas of section 3.1.
RetNetOptions paper(int64_t embed_dim, int64_t num_layers) {
  return RetNetOptions()
      .vocab_size(32000)
      .embed_dim(embed_dim)
      .num_layers(num_layers)
      .num_heads(embed_dim / 256)
      .key_dim(256)
      .value_dim(512)
      .ffn_dim(2 * embed_dim)
      .decay("linspace");
}

RetNetOptions tiny() {
  return RetNetOptions()
      .vocab_size(256)
      .embed_dim(128)
      .num_layers(3)
      .num_heads(4)
      .key_dim(32)
      .value_dim(64)
      .ffn_dim(256)
      // gamma = 0.5, 0.78, 0.91, 0.97: half of what decides the next byte lies within ten bytes.
      .decay(std::vector<double>{-0.69, -0.25, -0.09, -0.0317});
}

}  // namespace

RetNetOptions RetNetOptions::preset(std::string_view name) {
  const std::vector<std::pair<std::string_view, RetNetOptions>> presets = {
      {"tiny", tiny()},          {"small", paper(1024, 16)}, {"1.3b", paper(2048, 24)},
      {"2.7b", paper(2560, 32)}, {"6.7b", paper(4096, 32)},  {"13b", paper(5120, 40)}};
  std::vector<std::string_view> names;
  const RetNetOptions* found = nullptr;
  for (const auto& [preset_name, options] : presets) {
    if (preset_name == name) found = &options;
    names.push_back(preset_name);
  }
  TORCH_CHECK_VALUE(found != nullptr, "RetNetOptions::preset: name must be one of ", quoted(names),
                    ", got ", repr(std::string(name)));
  return *found;
}

const RetNetOptions& RetNetOptions::validated() const {
  require_size("vocab_size", vocab_size_);
  require_size("embed_dim", embed_dim_);
  require_size("num_layers", num_layers_);
  require_size("num_heads", num_heads_);
  require_size("key_dim", key_dim_);
  require_size("value_dim", value_dim_);
  require_size("ffn_dim", ffn_dim_);
  require_positive("group_norm_eps", group_norm_eps_);
  require_positive("norm_eps", norm_eps_);
  require_positive("residual_scale", residual_scale_);
  require_positive("embed_scale", embed_scale_);
  require(key_dim_ % 2 == 0, "key_dim", "even", repr(key_dim_));
  require_choice("rotary_style", {"interleaved", "half"}, rotary_style_);
  require_choice("group_norm", {"layer", "rms"}, group_norm_);
  require_choice("norm", {"layer", "rms"}, norm_);
  require_choice("activation", {"gelu", "swish"}, activation_);
  require_list("decay", {"power2", "linspace"}, "num_heads finite values of ln gamma <= 0",
               num_heads_, decay_);
  require_list("frequencies", {"retnet", "rope"}, "key_dim / 2 finite values", key_dim_ / 2,
               frequencies_);
  if (const auto* list = std::get_if<std::vector<double>>(&decay_)) {
    const bool ok = std::all_of(list->begin(), list->end(), [](double x) { return x <= 0; });
    require(ok, "decay", "<= 0 (it is ln gamma)", repr(*list));
  }
  return *this;
}

torch::Tensor RetNetOptions::log_decay() const {
  torch::Tensor values;
  if (const auto* list = std::get_if<std::vector<double>>(&decay_)) {
    values = torch::tensor(*list, torch::kFloat64);
  } else if (std::get<std::string>(decay_) == "power2") {
    values = torch::log1p(-torch::exp2(-5 - torch::arange(num_heads_, torch::kFloat64)));
  } else {
    const auto logs =
        torch::linspace(std::log(1.0 / 32), std::log(1.0 / 512), num_heads_, torch::kFloat64);
    values = torch::log1p(-logs.exp());
  }
  return values.to(torch::kFloat32);
}

torch::Tensor RetNetOptions::rotary_frequencies() const {
  if (const auto* list = std::get_if<std::vector<double>>(&frequencies_)) {
    return torch::tensor(*list, torch::kFloat32);
  }
  const auto pairs = key_dim_ / 2;
  const auto exponents = std::get<std::string>(frequencies_) == "retnet"
                             ? torch::linspace(0, 1, pairs, torch::kFloat64)
                             : torch::arange(pairs, torch::kFloat64) / pairs;
  return torch::pow(10000.0, -exponents).to(torch::kFloat32);
}

RetNetState RetNetOptions::make_state(int64_t batch,
                                      const torch::TensorOptions& tensor_options) const {
  TORCH_CHECK_VALUE(batch >= 0, "make_state: batch must be an integer >= 0, got ", batch);
  const auto dtype = c10::optTypeMetaToScalarType(tensor_options.dtype_opt());
  return {torch::zeros({num_layers_, batch, num_heads_, key_dim_, value_dim_},
                       tensor_options.dtype(dtype.value_or(torch::kFloat32))),
          torch::zeros({batch}, tensor_options.dtype(torch::kInt64))};
}

}  // namespace retnet::nn
