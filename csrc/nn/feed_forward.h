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

/// The feed-forward network of a decoder layer (Sun et al. 2023, Eq. 9). It computes down(act(up
/// x)). If `options.ffn_gated()`, it computes down(act(gate x) * (up x)). If
/// `options.ffn_inner_norm()`, a norm precedes down.
///
/// State-dict keys:
///
/// - `up_proj.weight` [F, d] and `down_proj.weight` [d, F],
/// - `gate_proj.weight` [F, d] if `options.ffn_gated()`,
/// - `inner_norm.*` [F] if `options.ffn_inner_norm()`,
/// - a `bias` for each of these matrices if `options.bias()`.
class RETNET_API FeedForwardImpl : public torch::nn::Cloneable<FeedForwardImpl> {
 public:
  /// `tensor_options` gives the device and the dtype of the parameters.
  explicit FeedForwardImpl(const RetNetOptions& options,
                           const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// Reinitialises every part. Matrices get torch's default for linear layers, as in torchscale.
  void reset_parameters();

  void pretty_print(std::ostream& stream) const override;

  /// Runs the network on x [..., d]. Returns [..., d].
  torch::Tensor forward(const torch::Tensor& x);

  RetNetOptions options;          ///< the options of the module
  Linear gate_proj{nullptr};      ///< d to F; empty unless gated
  Linear up_proj{nullptr};        ///< d to F
  LayerNorm inner_norm{nullptr};  ///< empty unless options.ffn_inner_norm()
  Linear down_proj{nullptr};      ///< F to d

 private:
  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(FeedForward);

}  // namespace retnet::nn
