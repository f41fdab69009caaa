// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "../version.h"

namespace retnet::nn {

/// The target of a token that is ignored.
constexpr int64_t kIgnoreIndex = -100;

/// Maps hidden states and parameters to logits.
using LogitsHead = std::function<torch::Tensor(const torch::Tensor& hidden,
                                               const std::vector<torch::Tensor>& parameters)>;

/// Computes the cross-entropy of `head(hidden, parameters)` against `targets` in nats, without
/// holding all logits at once.
///
///   hidden      [B, T, d]
///   head        maps hidden states [B, n, d] and `parameters` to logits [B, n, vocab_size]
///   targets     [B, T] int64, the class of each token. kIgnoreIndex (-100) is ignored
///   vocab_size  the number of logits per token
///   parameters  the tensors that `head` takes in addition to hidden states
///   reduction   "mean" over the targets that are not ignored (NaN without any), or "sum"
///   overwrite   whether the gradient of the logits of a chunk may overwrite them. This is correct
///               for a linear layer. It is wrong if the last operation of `head` keeps its output, as
///               a sigmoid does
///
/// The time axis is cut into equal chunks of B n <= max(1024, 2^25 / vocab_size) tokens, n >= 1. A
/// call of `head` computes the logits of a chunk, and they are freed before the next call. If one
/// chunk holds everything, this is torch's cross-entropy of all logits.
///
/// Otherwise, with grad mode on, the gradients are computed chunk by chunk in the forward pass:
///
/// - No logit is computed twice.
/// - `head` gets aliases of `parameters`. The hooks of the tensors themselves, leaves or not, run
///   once, in the backward pass, on the whole gradient.
/// - The gradients of `parameters` are summed in float32 or wider.
/// - Tensors that `head` takes from elsewhere get no gradient.
///
/// Returns a scalar. It is float64 for float64 logits, else float32. Raises c10::ValueError if
/// hidden, targets or reduction is not as above.
RETNET_API torch::Tensor linear_cross_entropy(const torch::Tensor& hidden, const LogitsHead& head,
                                              const torch::Tensor& targets, int64_t vocab_size,
                                              const std::vector<torch::Tensor>& parameters,
                                              std::string_view reduction = "mean",
                                              bool overwrite = false);

}  // namespace retnet::nn
