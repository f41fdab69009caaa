// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <functional>
#include <string>

#include "../version.h"
#include "causal_lm.h"

namespace retnet::nn {

/// Returns why a decode step of the model cannot be recorded as a graph on this device. Returns an
/// empty text if it finds no reason. Recording can still fail then.
RETNET_API std::string graph_unsupported_reason(const RetNetForCausalLM& model,
                                                const torch::Device& device);

/// Runs decode steps. Each call reads one token of each sequence and returns the logits of the next
/// token.
///
/// Tokens, state and logits are in the same memory at every step. On CUDA, the steps after the
/// first two therefore replay a CUDA graph of the whole model. This is one launch instead of some
/// hundreds. If no graph can be recorded, the steps run one by one, and one warning says why.
class RETNET_API DecodeStep {
 public:
  /// Takes ownership of `state`: later steps overwrite it.
  DecodeStep(RetNetForCausalLM model, RetNetState state);

  /// ids: [N, 1]. Returns logits [N, 1, vocab], which the next call overwrites.
  torch::Tensor operator()(const torch::Tensor& ids);

 private:
  void step();
  void record();

  RetNetForCausalLM model_;
  RetNetState state_;
  torch::Tensor ids_, logits_;
  std::function<void()> replay_;
  int until_record_;  // number of steps before the recorded one; negative if none is recorded
};

}  // namespace retnet::nn
