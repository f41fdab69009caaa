// SPDX-License-Identifier: Apache-2.0
//
// The options of a model and the named presets.
#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "catch.h"
#include "nn_cases.h"

TEST_CASE("options: a bad value is named, as in Python") {
  const auto inf = std::numeric_limits<double>::infinity();
  const std::vector<std::pair<std::function<void(RetNetOptions&)>, std::string>> bad = {
      {[](auto& o) { o.vocab_size(0); }, "vocab_size must be a positive integer, got 0"},
      {[](auto& o) { o.embed_dim(-3); }, "embed_dim must be a positive integer, got -3"},
      {[](auto& o) { o.num_layers(0); }, "num_layers must be a positive integer, got 0"},
      {[](auto& o) { o.num_heads(0); }, "num_heads must be a positive integer, got 0"},
      {[](auto& o) { o.key_dim(0); }, "key_dim must be a positive integer, got 0"},
      {[](auto& o) { o.value_dim(0); }, "value_dim must be a positive integer, got 0"},
      {[](auto& o) { o.ffn_dim(0); }, "ffn_dim must be a positive integer, got 0"},
      {[](auto& o) { o.key_dim(5); }, "key_dim must be even, got 5"},
      {[](auto& o) { o.norm_eps(0); }, "norm_eps must be a finite number > 0, got 0.0"},
      {[](auto& o) { o.group_norm_eps(-1e-6); },
       "group_norm_eps must be a finite number > 0, got -1e-06"},
      {[](auto& o) { o.embed_scale(std::nan("")); },
       "embed_scale must be a finite number > 0, got nan"},
      {[=](auto& o) { o.residual_scale(inf); },
       "residual_scale must be a finite number > 0, got inf"},
      {[](auto& o) { o.rotary_style("x"); },
       "rotary_style must be one of \"interleaved\", \"half\", got 'x'"},
      {[](auto& o) { o.norm("batch"); }, "norm must be one of \"layer\", \"rms\", got 'batch'"},
      {[](auto& o) { o.group_norm(""); }, "group_norm must be one of \"layer\", \"rms\", got ''"},
      {[](auto& o) { o.activation("relu"); },
       "activation must be one of \"gelu\", \"swish\", got 'relu'"},
      {[](auto& o) { o.decay("x"); },
       "decay must be one of \"power2\", \"linspace\" or num_heads finite values of ln gamma <= 0 "
       "(3), got 'x'"},
      {[=](auto& o) {
         o.decay(std::vector<double>{-0.25, -inf, 0});
       },
       "decay must be one of \"power2\", \"linspace\" or num_heads finite values of ln gamma <= 0 "
       "(3), got [-0.25, -inf, 0.0]"},
      {[](auto& o) {
         o.decay(std::vector<double>{-0.1, 0.1, 0});
       },
       "decay must be <= 0 (it is ln gamma), got [-0.1, 0.1, 0.0]"},
      {[](auto& o) { o.frequencies(std::vector<double>{1}); },
       "frequencies must be one of \"retnet\", \"rope\" or key_dim / 2 finite values (2), got "
       "[1.0]"},
  };
  for (const auto& [change, expected] : bad) {
    auto options = small_options();
    change(options);
    CHECK(message([&] { RetNetForCausalLM model(options); }) == "RetNetOptions: " + expected);
  }
  CHECK(message([] { RetNetOptions::preset("3b"); }) ==
        "RetNetOptions::preset: name must be one of \"tiny\", \"small\", \"1.3b\", \"2.7b\", "
        "\"6.7b\", \"13b\", got '3b'");
  CHECK(message([] { small_options().make_state(-1); }) ==
        "make_state: batch must be an integer >= 0, got -1");
}

// sum(p.numel() for p in RetNetForCausalLM(RetNetConfig.preset(name), device="meta").parameters())
TEST_CASE("presets have the parameters of Python's, counted on the meta device") {
  const std::vector<std::tuple<const char*, int64_t, size_t>> table = {
      {"tiny", 657152, 37},      {"small", 266930176, 180}, {"1.3b", 1339232256, 268},
      {"2.7b", 2680755200, 356}, {"6.7b", 6705127424, 356}, {"13b", 12911421440, 444}};
  for (const auto& [name, numel, tensors] : table) {
    INFO(name);
    const RetNetForCausalLM model(RetNetOptions::preset(name), torch::kMeta);
    int64_t count = 0;
    for (const auto& parameter : model->parameters()) {
      REQUIRE(parameter.is_meta());
      count += parameter.numel();
    }
    CHECK(count == numel);
    CHECK(model->parameters().size() == tensors);
  }
}
