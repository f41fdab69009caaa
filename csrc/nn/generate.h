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

/// How `generate` samples tokens and when it ends. Set a field by `name(value)` and read it by
/// `name()`. `generate` raises c10::ValueError if a field is out of its range. The message names
/// the field and its value.
struct RETNET_API GenerateOptions {
  /// max_new_tokens is the only option without a default.
  explicit GenerateOptions(int64_t max_new_tokens) : max_new_tokens_(max_new_tokens) {}

  /// The maximum number of new tokens for each prompt, >= 0.
  TORCH_ARG(int64_t, max_new_tokens);
  /// Divides the logits, >= 0. 0 takes the most likely token.
  TORCH_ARG(double, temperature) = 1.0;
  /// Sample only from the k most likely tokens, k >= 1. Ties with the k-th are kept.
  TORCH_ARG(std::optional<int64_t>, top_k);
  /// Sample only from the smallest set of most likely tokens whose probabilities (after temperature
  /// and top_k) sum to at least p, 0 < p <= 1.
  TORCH_ARG(std::optional<double>, top_p);
  /// Makes the sampling repeatable. If absent, torch's global generator is used.
  TORCH_ARG(std::optional<uint64_t>, seed);
  /// A text ends with the first of these tokens that is sampled. This token is part of the text.
  TORCH_ARG(std::vector<int64_t>, stop_tokens);
};

/// Generates text. It reads the prompts in one chunkwise pass and then takes one recurrent step per
/// token.
///
///   prompts  N tensors [T_n] int64 or int32 on the model's device, T_n >= 1. If the lengths differ,
///            the model reads the prompts packed
///
/// Returns each prompt with its continuation, as N int64 tensors.
///
/// Raises c10::ValueError if an argument is out of its range, or if a logit is NaN or inf. A logit
/// of -inf bans its token and is legal, unless all logits of a row are -inf. On the CPU, and if
/// there are stop tokens, the logits of every step are checked before its token is sampled.
/// Otherwise they are checked at the first step, then every 64 steps and at the end, so that no
/// other step waits for the device.
///
/// On CUDA, the third decode step is recorded as a CUDA graph of the whole model. Later steps
/// replay it. The steps run one by one instead, with the same text, if the parameters are on
/// several devices, if autocast is on, in a build without CUDA, or if recording fails. A warning
/// then says why, once.
RETNET_API std::vector<torch::Tensor> generate(RetNetForCausalLM model,
                                               const std::vector<torch::Tensor>& prompts,
                                               const GenerateOptions& options);

}  // namespace retnet::nn
