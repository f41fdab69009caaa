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
  /// [B, T, vocab], the logits of the token after each position. Undefined if there is a loss.
  torch::Tensor logits;
  /// Cross-entropy in nats, a scalar. Absent without labels or targets.
  std::optional<torch::Tensor> loss;
  /// The state after the last token.
  RetNetState state;
};

/// A RetNet that predicts the next token.
///
/// State-dict keys: those of `RetNet`, and `lm_head.weight` [vocab, d] unless
/// `options.tie_embeddings()`.
class RETNET_API RetNetForCausalLMImpl : public torch::nn::Cloneable<RetNetForCausalLMImpl> {
 public:
  /// `tensor_options` gives the device and the dtype of the parameters.
  explicit RetNetForCausalLMImpl(const RetNetOptions& options,
                                 const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// Reinitialises every part. The output matrix is drawn from N(0, 1/d), as in torchscale.
  void reset_parameters();

  /// Runs the model on a block of tokens. Returns logits or a loss.
  ///
  ///   input_ids   [B, T] int64 or int32
  ///   state       the state after the tokens that were read before; absent at the start. If the
  ///               sequences are packed, it holds N sequences
  ///   cu_seqlens  [N + 1] int32, bounds of N packed sequences (B = 1)
  ///   labels      [B, T] int64, usually input_ids itself. Position t is scored against
  ///               labels[t + 1] of the same sequence. -100 is ignored
  ///   form        "chunkwise", "parallel" or "recurrent". The values are the same up to rounding
  ///   inplace     a decode step (T = 1 with a state, grad mode off) overwrites `state` instead of a
  ///               copy. Other calls never change `state`
  ///   last_only   return only the logits of the last token of each sequence, [B, 1, vocab], or
  ///               [1, N, vocab] if packed. Decoding needs no others. It excludes labels and
  ///               targets. No sequence may be empty. Bounds on a CPU are checked. On other devices,
  ///               the logits of an empty sequence are NaN
  ///   targets     [B, T] int64, instead of labels. Position t is scored against targets[t], so that
  ///               the last position counts too. -100 is ignored
  ///   reduction   "mean" over the targets that are not ignored, or "sum"
  ///
  /// Returns the logits, or the loss if labels or targets are given, and the state. Without any
  /// target, a mean is NaN, as in torch. `linear_cross_entropy` computes the loss, so not all
  /// logits exist at once.
  ///
  /// Raises c10::ValueError if input_ids, labels, targets or state has a wrong shape, if labels or
  /// targets has a wrong dtype, if more than one of labels, targets and last_only is given, or if
  /// last_only finds no token.
  CausalLMOutput forward(const torch::Tensor& input_ids,
                         const std::optional<RetNetState>& state = std::nullopt,
                         const std::optional<torch::Tensor>& cu_seqlens = std::nullopt,
                         const std::optional<torch::Tensor>& labels = std::nullopt,
                         std::string_view form = "chunkwise", bool inplace = false,
                         bool last_only = false,
                         const std::optional<torch::Tensor>& targets = std::nullopt,
                         std::string_view reduction = "mean");

  RetNetOptions options;    ///< the options of the module
  RetNet body{nullptr};     ///< the body; its children are registered here, so keys have no prefix
  Linear lm_head{nullptr};  ///< empty if tied

 private:
  void reset_head();

  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(RetNetForCausalLM);

}  // namespace retnet::nn
