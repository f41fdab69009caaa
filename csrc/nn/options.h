// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/arg.h>
#include <torch/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "../version.h"
#include "state.h"

namespace retnet::nn {

/// A setting that is either a name or a list of numbers.
using NameOrList = std::variant<std::string, std::vector<double>>;

/// Sizes and switches of a RetNet. Fields, defaults and presets are the same as those of
/// `retnet.RetNetConfig` in Python. The sizes must be given. The defaults of the switches follow
/// the paper (Sun et al. 2023), whose sections and equations are cited below.
///
/// Set a field by `name(value)`, which returns the options. Read it by `name()`:
///
/// ```cpp
/// const auto options = retnet::nn::RetNetOptions()
///                          .vocab_size(256)
///                          .embed_dim(64)
///                          .num_layers(2)
///                          .num_heads(2)
///                          .key_dim(32)
///                          .value_dim(64)
///                          .ffn_dim(128)
///                          .decay("linspace");
/// ```
class RETNET_API RetNetOptions {
 public:
  /// Returns a named configuration:
  ///
  /// - "tiny" is the byte-level model of the demo.
  /// - "small" is the 200M model of the paper's ablations (section 3.4).
  /// - "1.3b", "2.7b" and "6.7b" are the models of the paper's Table 2.
  /// - "13b" follows the same rule at the width of the model in the paper's cost table. The rule is
  ///   K = 256, V = 512 and F = 2d, so a layer has 12 d^2 parameters.
  ///
  /// The paper gives no vocabulary size. The presets other than "tiny" use 32000.
  ///
  /// Raises c10::ValueError if there is no such name.
  static RetNetOptions preset(std::string_view name);

  /// Returns these options if every field is in its range. Otherwise it raises c10::ValueError,
  /// which names the field, the requirement and the value. Every module calls it when it is built.
  const RetNetOptions& validated() const;

  /// Returns ln gamma of each head, [H] float32 on the CPU.
  torch::Tensor log_decay() const;

  /// Returns the rotary frequencies in radians per token, [K/2] float32 on the CPU.
  torch::Tensor rotary_frequencies() const;

  /// Returns the state before the first token. It is zero, at position 0.
  ///
  ///   batch           B, the number of sequences, at least 0
  ///   tensor_options  device, and dtype: float32 (the default), or float64 for a float64 model
  ///
  /// Raises c10::ValueError if batch is negative.
  RetNetState make_state(int64_t batch, const torch::TensorOptions& tensor_options = {}) const;

  /// The number of token ids. Every size is at most 2^31 - 1.
  TORCH_ARG(int64_t, vocab_size) = 0;
  /// d, the width of the residual stream.
  TORCH_ARG(int64_t, embed_dim) = 0;
  /// L, the number of layers, at most 65536.
  TORCH_ARG(int64_t, num_layers) = 0;
  /// H, the number of heads in a layer.
  TORCH_ARG(int64_t, num_heads) = 0;
  /// K, the head size of queries and keys. It is even, because channels rotate in pairs.
  TORCH_ARG(int64_t, key_dim) = 0;
  /// V, the head size of values.
  TORCH_ARG(int64_t, value_dim) = 0;
  /// F, the inner size of the feed-forward network.
  TORCH_ARG(int64_t, ffn_dim) = 0;
  /// gamma of each head. "power2" gives 1 - 2^(-5-h) (Eq. 8). "linspace" gives 1 - exp(linspace(ln
  /// 1/32, ln 1/512, H)) (section 3.1). A list gives H values of ln gamma, finite and <= 0.
  TORCH_ARG(NameOrList, decay) = "power2";
  /// ln gamma starts at these values and is learned. Its parameter is part of the state dict.
  TORCH_ARG(bool, learnable_decay) = false;
  /// The channels that rotate together. They are (2i, 2i+1) for "interleaved" and (i, i + K/2) for
  /// "half".
  TORCH_ARG(std::string, rotary_style) = "interleaved";
  /// Radians per token of each pair. "retnet" gives 10000^(-i/(K/2-1)), as in torchscale. "rope"
  /// gives 10000^(-2i/K). A list gives K/2 finite values.
  TORCH_ARG(NameOrList, frequencies) = "retnet";
  /// Multiply q_t by n_t^(-1/2), where n_t = sum_{i<=t} gamma^i. This is the D / sqrt(sum D) of
  /// section 2.2, "Retention Score Normalization".
  TORCH_ARG(bool, decay_norm) = true;
  /// The normalisation of each head's output, "layer" or "rms".
  TORCH_ARG(std::string, group_norm) = "layer";
  /// Added to the variance in that normalisation.
  TORCH_ARG(double, group_norm_eps) = 1e-6;
  /// That normalisation has a weight [V], and a bias [V] if it is "layer". The heads share them.
  TORCH_ARG(bool, group_norm_affine) = false;
  /// The normalisation everywhere else, "layer" or "rms".
  TORCH_ARG(std::string, norm) = "layer";
  /// Added to the variance in that normalisation.
  TORCH_ARG(double, norm_eps) = 1e-6;
  /// Normalise the input of each block (Eq. 9), and once more after all layers. If it is false,
  /// normalise after each residual sum.
  TORCH_ARG(bool, pre_norm) = true;
  /// down(act(gate x) * (up x)) instead of down(act(up x)), which the paper uses.
  TORCH_ARG(bool, ffn_gated) = false;
  /// Normalise the F inner activations before down (torchscale calls it subln).
  TORCH_ARG(bool, ffn_inner_norm) = false;
  /// act, "gelu" (exact) or "swish".
  TORCH_ARG(std::string, activation) = "gelu";
  /// The matrices of retention and of the feed-forward network have biases.
  TORCH_ARG(bool, bias) = false;
  /// Factor on the residual branch (DeepNet calls it alpha).
  TORCH_ARG(double, residual_scale) = 1.0;
  /// Factor on the embeddings.
  TORCH_ARG(double, embed_scale) = 1.0;
  /// Normalise the scaled embeddings.
  TORCH_ARG(bool, embed_norm) = false;
  /// The output matrix is the embedding, and the state dict has no lm_head.
  TORCH_ARG(bool, tie_embeddings) = false;
};

}  // namespace retnet::nn
