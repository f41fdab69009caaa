// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <optional>
#include <string_view>

#include "../version.h"
#include "linear.h"
#include "options.h"
#include "retnet.h"
#include "state.h"

namespace retnet::nn {

/// What `RetNetForCausalLM` returns.
struct CausalLMOutput {
  torch::Tensor logits;  ///< [B, T, vocab], of the token after each position; undefined with a loss
  std::optional<torch::Tensor>
      loss;           ///< cross-entropy in nats, a scalar; absent without labels or targets
  RetNetState state;  ///< after the last token
};

/// A RetNet that predicts the next token.
///
/// Keys: those of `RetNet`, and `lm_head.weight` [vocab, d] unless `options.tie_embeddings()`.
class RETNET_API RetNetForCausalLMImpl : public torch::nn::Cloneable<RetNetForCausalLMImpl> {
 public:
  /// `tensor_options` says where and in which dtype the parameters are made.
  explicit RetNetForCausalLMImpl(const RetNetOptions& options,
                                 const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// Initialises every part anew; the output matrix from N(0, 1/d), as torchscale.
  void reset_parameters();

  /// Runs the model over a block of tokens, to logits or to a loss.
  ///
  ///   input_ids   [B, T] int64 or int32
  ///   state       what the model has read so far; absent = a start. Of N sequences if packed
  ///   cu_seqlens  [N + 1] int32, bounds of N packed sequences (B = 1)
  ///   labels      [B, T] int64, usually input_ids itself: position t is scored against
  ///               labels[t + 1] of the same sequence; -100 is ignored
  ///   form        "chunkwise", "parallel" or "recurrent"; the same values up to rounding
  ///   inplace     a step of decoding (T = 1 with a state, grad mode off) overwrites `state` instead
  ///               of a copy. Other calls leave `state` alone in any case
  ///   last_only   the logits of the last token of each sequence alone, [B, 1, vocab], packed
  ///               [1, N, vocab]: all that decoding needs. Not with labels or targets. No sequence
  ///               may be empty: bounds on a CPU are checked, elsewhere its logits are NaN
  ///   targets     [B, T] int64, in place of labels: position t is scored against targets[t], so that
  ///               the last one counts too; -100 is ignored
  ///   reduction   of the loss: "mean" over the targets that are not ignored, or "sum"
  ///
  /// Returns the logits, or with labels or targets the loss (a mean without a target is NaN, as in
  /// torch), and the state. The loss is that of `linear_cross_entropy`: not all logits exist at once.
  /// Raises c10::ValueError when input_ids, labels, targets or state has a wrong shape, labels or
  /// targets another dtype, when two of labels, targets and last_only are given, or when last_only
  /// finds no token.
  CausalLMOutput forward(const torch::Tensor& input_ids,
                         const std::optional<RetNetState>& state = std::nullopt,
                         const std::optional<torch::Tensor>& cu_seqlens = std::nullopt,
                         const std::optional<torch::Tensor>& labels = std::nullopt,
                         std::string_view form = "chunkwise", bool inplace = false,
                         bool last_only = false,
                         const std::optional<torch::Tensor>& targets = std::nullopt,
                         std::string_view reduction = "mean");

  RetNetOptions options;    ///< what it was made from
  RetNet body{nullptr};     ///< its children are registered here, so keys have no prefix
  Linear lm_head{nullptr};  ///< empty if tied

 private:
  void reset_head();

  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(RetNetForCausalLM);

}  // namespace retnet::nn
