// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/arg.h>
#include <torch/types.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "../version.h"
#include "causal_lm.h"

namespace retnet::nn {

/// How `generate` draws tokens and when it ends. `generate` raises c10::ValueError where a field is
/// out of its range; the message names it and its value. Each is set by `name(value)` and read by
/// `name()`.
struct RETNET_API GenerateOptions {
  /// The one option without a default.
  explicit GenerateOptions(int64_t max_new_tokens) : max_new_tokens_(max_new_tokens) {}

  /// Most tokens to write for each prompt, >= 0.
  TORCH_ARG(int64_t, max_new_tokens);
  /// Divides the logits, >= 0; 0 takes the most likely token.
  TORCH_ARG(double, temperature) = 1.0;
  /// Draw among the k most likely tokens only, k >= 1; ties with the k-th stay in.
  TORCH_ARG(std::optional<int64_t>, top_k);
  /// Draw among the fewest most likely tokens whose probabilities (after temperature and top_k) sum
  /// to at least p, 0 < p <= 1.
  TORCH_ARG(std::optional<double>, top_p);
  /// Of the draw, for repeatable text; absent = torch's global generator.
  TORCH_ARG(std::optional<uint64_t>, seed);
  /// A text ends with the first of these that is drawn; it is part of the text.
  TORCH_ARG(std::vector<int64_t>, stop_tokens);
};

/// Writes text: reads the prompts in one chunkwise pass, then takes one recurrent step a token.
///
///   prompts  N tensors [T_n] int64 or int32 on the model's device, T_n >= 1. Lengths may differ: the
///            prompts are then read packed
///
/// Returns each prompt with its continuation, N tensors int64. Raises c10::ValueError when an
/// argument is out of its range, or a logit is NaN or inf (-inf, which bans a token, is legal unless
/// all are). On the CPU and with stop tokens the logits of every step are checked before its token is
/// drawn; otherwise those of the first step, then every 64 steps and at the end, so that no other
/// step waits for the device.
///
/// On CUDA the third step is recorded as a CUDA graph of the whole model, which the steps after it
/// repeat. Where that cannot be (parameters on several devices, autocast, a build without CUDA, a
/// failure while recording) the steps run one by one, with the same text, and a warning says why, once.
RETNET_API std::vector<torch::Tensor> generate(RetNetForCausalLM model,
                                               const std::vector<torch::Tensor>& prompts,
                                               const GenerateOptions& options);

}  // namespace retnet::nn
