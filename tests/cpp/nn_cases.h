// SPDX-License-Identifier: Apache-2.0
//
// Small models for the tests of retnet::nn: one for each switch.
#pragma once

#include <c10/util/Exception.h>
#include <retnet/nn/causal_lm.h>

#include <functional>
#include <string>
#include <vector>

using retnet::nn::RetNetForCausalLM;
using retnet::nn::RetNetOptions;

inline RetNetOptions small_options() {
  return RetNetOptions()
      .vocab_size(13)
      .embed_dim(12)
      .num_layers(2)
      .num_heads(3)
      .key_dim(4)
      .value_dim(6)
      .ffn_dim(10);
}

struct Variant {
  std::string name;
  std::function<void(RetNetOptions&)> change;
  // Keys that the model has and that of the paper has not, and the reverse. Those of layer 0 stand for
  // every layer.
  std::vector<std::string> more = {};
  std::vector<std::string> fewer = {};

  RetNetOptions options() const {
    auto options = small_options();
    change(options);
    return options;
  }
};

inline const std::vector<Variant>& variants() {
  static const std::vector<double> decay = {-0.5, -0.1, 0.0}, frequencies = {0.75, 0.125};
  static const std::string retention = "layers.0.retention.";
  static const std::vector<Variant> all = {
      {"paper", [](auto&) {}},
      {"linspace", [](auto& o) { o.decay("linspace").decay_norm(false); }},
      {"lists", [](auto& o) { o.decay(decay).frequencies(frequencies); }},
      {"half", [](auto& o) { o.rotary_style("half").frequencies("rope"); }},
      {"rms",
       [](auto& o) { o.group_norm("rms").group_norm_eps(1e-3).norm("rms").norm_eps(1e-3); },
       {},
       {"layers.0.retention_norm.bias", "layers.0.ffn_norm.bias", "norm.bias"}},
      {"affine",
       [](auto& o) { o.group_norm_affine(true); },
       {retention + "group_norm.weight", retention + "group_norm.bias"}},
      {"affine rms",
       [](auto& o) { o.group_norm_affine(true).group_norm("rms"); },
       {retention + "group_norm.weight"}},
      {"post norm",
       [](auto& o) { o.pre_norm(false).residual_scale(1.5); },
       {},
       {"norm.weight", "norm.bias"}},
      {"gated",
       [](auto& o) { o.ffn_gated(true).activation("swish"); },
       {"layers.0.ffn.gate_proj.weight"}},
      {"biases",
       [](auto& o) { o.bias(true); },
       {retention + "q_proj.bias", retention + "k_proj.bias", retention + "v_proj.bias",
        retention + "g_proj.bias", retention + "out_proj.bias", "layers.0.ffn.up_proj.bias",
        "layers.0.ffn.down_proj.bias"}},
      {"more norms",
       [](auto& o) { o.embed_norm(true).ffn_inner_norm(true).embed_scale(2); },
       {"embed_norm.weight", "embed_norm.bias", "layers.0.ffn.inner_norm.weight",
        "layers.0.ffn.inner_norm.bias"}},
      {"scales",
       [](auto& o) { o.residual_scale(2).embed_scale(3).tie_embeddings(true); },
       {},
       {"lm_head.weight"}},
      {"learnable",
       [](auto& o) { o.learnable_decay(true).decay(decay); },
       {retention + "log_decay_raw"}}};
  return all;
}

/// Makes a float64 model with random weights, norms included, that are large enough to matter.
inline RetNetForCausalLM random_model(const RetNetOptions& options) {
  torch::manual_seed(0);
  RetNetForCausalLM model(options, torch::kFloat64);
  const torch::NoGradGuard no_grad;
  for (auto& parameter : model->parameters()) {
    if (parameter.dim() > 1) {
      parameter.normal_(0, 0.6);
    } else {
      parameter.add_(torch::randn_like(parameter), 0.3);
    }
  }
  return model;
}

inline torch::Tensor random_ids(int64_t B, int64_t T) {
  torch::manual_seed(1);
  return torch::randint(13, {B, T}, torch::kInt64);
}

inline bool close(const torch::Tensor& a, const torch::Tensor& b, double tolerance = 1e-10) {
  return a.sizes() == b.sizes() && torch::allclose(a, b, tolerance, tolerance);
}

/// Returns the message of the ValueError that `call` raises.
inline std::string message(const std::function<void()>& call) {
  try {
    call();
  } catch (const c10::ValueError& error) {
    return error.what_without_backtrace();
  }
  return "nothing raised";
}
