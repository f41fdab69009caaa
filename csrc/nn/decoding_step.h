// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <functional>
#include <string>

#include "../version.h"
#include "causal_lm.h"

namespace retnet::nn {

/// Why a step of the model cannot be recorded as a graph on this device as far as one can tell
/// beforehand, or empty.
RETNET_API std::string graph_refusal(const RetNetForCausalLM& model, const torch::Device& device);

/// One step of decoding after another: reads a token of each row and gives the logits of the next.
///
/// Tokens, state and logits lie in the same memory at every step, so that on CUDA the steps after the
/// first two repeat a CUDA graph of the whole model: one launch for some hundreds. Where there can be
/// none, the steps run one by one, and a warning says why, once.
class RETNET_API DecodingStep {
 public:
  /// `state` is the steps' own from here on.
  DecodingStep(RetNetForCausalLM model, RetNetState state);

  /// ids: [N, 1]. Returns logits [N, 1, vocab], which the next call overwrites.
  torch::Tensor operator()(const torch::Tensor& ids);

 private:
  void step();
  void record();

  RetNetForCausalLM model_;
  RetNetState state_;
  torch::Tensor ids_, logits_;
  std::function<void()> replay_;
  int until_record_;  // steps before the one that is recorded; negative: none will be
};

}  // namespace retnet::nn
