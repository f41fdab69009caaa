// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <ostream>

#include "../version.h"
#include "layer_norm.h"
#include "linear.h"
#include "options.h"

namespace retnet::nn {

/// The feed-forward network of a decoder layer (Sun et al. 2023, Eq. 9): down(act(up x)); with
/// `options.ffn_gated()` down(act(gate x) * (up x)). With `options.ffn_inner_norm()` a norm comes
/// before down.
///
/// Keys: `up_proj.weight` [F, d], `down_proj.weight` [d, F], gated also `gate_proj.weight` [F, d];
/// `inner_norm.*` [F] if there is one; `bias` beside each weight if `options.bias()`.
class RETNET_API FeedForwardImpl : public torch::nn::Cloneable<FeedForwardImpl> {
 public:
  /// `tensor_options` says where and in which dtype the parameters are made.
  explicit FeedForwardImpl(const RetNetOptions& options,
                           const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// torch's default for linear layers, as torchscale.
  void reset_parameters();

  void pretty_print(std::ostream& stream) const override;

  /// x [..., d]. Returns [..., d].
  torch::Tensor forward(const torch::Tensor& x);

  RetNetOptions options;          ///< what it was made from
  Linear gate_proj{nullptr};      ///< d to F; empty unless gated
  Linear up_proj{nullptr};        ///< d to F
  LayerNorm inner_norm{nullptr};  ///< empty unless options.ffn_inner_norm()
  Linear down_proj{nullptr};      ///< F to d

 private:
  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(FeedForward);

}  // namespace retnet::nn
