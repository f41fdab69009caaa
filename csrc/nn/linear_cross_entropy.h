// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

#include "../version.h"

namespace retnet::nn {

/// The target of a token that is left out.
constexpr int64_t kIgnoreIndex = -100;

/// Gives logits of hidden states and parameters.
using LogitsHead = std::function<torch::Tensor(const torch::Tensor& hidden,
                                               const std::vector<torch::Tensor>& parameters)>;

/// The cross-entropy of `head(hidden, parameters)` against `targets` in nats, without all logits at
/// once.
///
///   hidden      [B, T, d]
///   head        gives logits [B, n, vocab_size] of hidden states [B, n, d] and `parameters`
///   targets     [B, T] int64, the class of each token; kIgnoreIndex (-100) is ignored
///   vocab_size  the number of logits of a token
///   parameters  the tensors that `head` takes beside hidden states
///   reduction   "mean" over the targets that are not ignored (NaN without any), or "sum"
///   overwrite   whether the gradient of a chunk's logits may take their memory: right for a linear
///               layer, wrong where the last operation of `head` keeps its output, as a sigmoid does
///
/// The time axis is cut into equal chunks of B n <= max(1024, 2^25 / vocab_size) tokens (but n >= 1).
/// Each chunk's logits come from a call of `head`, and are gone before the next chunk's. Where one
/// chunk holds everything, this is torch's cross-entropy of all logits. Otherwise, with grad mode on,
/// the gradients are computed chunk by chunk in the forward pass, so that no logit is computed twice.
/// `head` is then given aliases of `parameters`: the hooks of the tensors themselves, leaves or not,
/// run once, in the backward pass, on the whole gradient. The gradients of `parameters` are summed in
/// float32 or wider. What `head` takes from elsewhere gets no gradient.
///
/// Returns a scalar: float64 of float64 logits, else float32. Raises c10::ValueError when hidden,
/// targets or reduction is not as above.
RETNET_API torch::Tensor linear_cross_entropy(const torch::Tensor& hidden, const LogitsHead& head,
                                              const torch::Tensor& targets, int64_t vocab_size,
                                              const std::vector<torch::Tensor>& parameters,
                                              std::string_view reduction = "mean",
                                              bool overwrite = false);

}  // namespace retnet::nn
