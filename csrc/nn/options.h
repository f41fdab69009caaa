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

/// A setting that is either named or given as a list of numbers.
using NameOrList = std::variant<std::string, std::vector<double>>;

/// Sizes and switches of a RetNet; the same fields, defaults and presets as `retnet.RetNetConfig` in
/// Python. The sizes must be given; the defaults of the switches are those of the paper (Sun et al.
/// 2023).
///
/// Each is set by `name(value)`, which returns the options, and read by `name()`:
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
  /// A named configuration. "tiny" is the byte-level model of the demo; "small" the paper's 200M
  /// ablation model (section 3.4); "1.3b", "2.7b", "6.7b" its Table 2; "13b" follows the same rule
  /// (K = 256, V = 512, F = 2d, so 12 d^2 parameters a layer) at the width of its cost table. The
  /// paper gives no vocabulary size: 32000 stands there.
  ///
  /// Raises c10::ValueError when there is no such name.
  static RetNetOptions preset(std::string_view name);

  /// These options, once every field is in its range; else raises c10::ValueError, which names the
  /// field, the requirement and the value. Every module does it when it is built.
  const RetNetOptions& validated() const;

  /// ln gamma of each head, [H] float32 on the CPU.
  torch::Tensor log_decay() const;

  /// The rotary frequencies, [K/2] float32 on the CPU, radians per token.
  torch::Tensor rotary_frequencies() const;

  /// The state before the first token: zeros, at position 0.
  ///
  ///   batch           B, number of sequences, at least 0
  ///   tensor_options  device, and dtype: float32 (the default), or float64 for a float64 model
  RetNetState make_state(int64_t batch, const torch::TensorOptions& tensor_options = {}) const;

  /// Number of token ids; as every size <= 2^31 - 1.
  TORCH_ARG(int64_t, vocab_size) = 0;
  /// d, width of the residual stream.
  TORCH_ARG(int64_t, embed_dim) = 0;
  /// L, <= 65536.
  TORCH_ARG(int64_t, num_layers) = 0;
  /// H.
  TORCH_ARG(int64_t, num_heads) = 0;
  /// K, size of a head's queries and keys; even (rotary pairs).
  TORCH_ARG(int64_t, key_dim) = 0;
  /// V, size of a head's values.
  TORCH_ARG(int64_t, value_dim) = 0;
  /// F, inner size of the feed-forward network.
  TORCH_ARG(int64_t, ffn_dim) = 0;
  /// gamma of each head. "power2": 1 - 2^(-5-h) (Eq. 8); "linspace":
  /// 1 - exp(linspace(ln 1/32, ln 1/512, H)) (section 3.1); or H values of ln gamma, finite and
  /// <= 0.
  TORCH_ARG(NameOrList, decay) = "power2";
  /// ln gamma is a parameter and part of the state dict.
  TORCH_ARG(bool, learnable_decay) = false;
  /// Channels that rotate together: "interleaved" (2i, 2i+1) or "half" (i, i + K/2).
  TORCH_ARG(std::string, rotary_style) = "interleaved";
  /// Radians per token of each pair. "retnet": 10000^(-i/(K/2-1)), as torchscale; "rope":
  /// 10000^(-2i/K); or K/2 finite values.
  TORCH_ARG(NameOrList, frequencies) = "retnet";
  /// Multiply q_t by n_t^(-1/2), n_t = sum_{i<=t} gamma^i: the D / sqrt(sum D) of section 2.2,
  /// "Retention Score Normalization".
  TORCH_ARG(bool, decay_norm) = true;
  /// Normalisation of each head's output, "layer" or "rms".
  TORCH_ARG(std::string, group_norm) = "layer";
  /// Added to the variance there.
  TORCH_ARG(double, group_norm_eps) = 1e-6;
  /// weight [V] (and bias [V] for "layer"), shared by the heads.
  TORCH_ARG(bool, group_norm_affine) = false;
  /// Normalisation of the blocks, and of every other place than a head, "layer" or "rms".
  TORCH_ARG(std::string, norm) = "layer";
  /// Added to the variance there.
  TORCH_ARG(double, norm_eps) = 1e-6;
  /// Normalise the input of each block (Eq. 9), with a last norm after all layers; otherwise
  /// normalise after each residual sum.
  TORCH_ARG(bool, pre_norm) = true;
  /// down(act(gate x) * (up x)) instead of the paper's down(act(up x)).
  TORCH_ARG(bool, ffn_gated) = false;
  /// Normalise the F inner activations before down (torchscale's subln).
  TORCH_ARG(bool, ffn_inner_norm) = false;
  /// act, "gelu" (exact) or "swish".
  TORCH_ARG(std::string, activation) = "gelu";
  /// The matrices of retention and of the feed-forward network have biases.
  TORCH_ARG(bool, bias) = false;
  /// Factor on the residual branch (DeepNet's alpha).
  TORCH_ARG(double, residual_scale) = 1.0;
  /// Factor on the embeddings.
  TORCH_ARG(double, embed_scale) = 1.0;
  /// Normalise the scaled embeddings.
  TORCH_ARG(bool, embed_norm) = false;
  /// The output matrix is the embedding; the state dict has no lm_head.
  TORCH_ARG(bool, tie_embeddings) = false;
};

}  // namespace retnet::nn
