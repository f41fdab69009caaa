// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <optional>
#include <ostream>

#include "../version.h"
#include "options.h"

namespace retnet::nn {

/// Normalisation of each head's output, times the swish gate (Sun et al. 2023, Eq. 8). It computes
/// y = norm(x) * swish(gate). The norm is taken over the V channels of each head.
///
/// State-dict keys, if `options.group_norm_affine()`: `weight` [V], and `bias` [V] if
/// `options.group_norm()` is "layer". Otherwise there are none.
class RETNET_API GatedGroupNormImpl : public torch::nn::Cloneable<GatedGroupNormImpl> {
 public:
  /// `tensor_options` gives the device and the dtype of the parameters.
  explicit GatedGroupNormImpl(const RetNetOptions& options,
                              const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// Sets weight to 1 and bias to 0.
  void reset_parameters();

  void pretty_print(std::ostream& stream) const override;

  /// Normalises x [B, T, H, V] and applies gate [B, T, H, V]. Returns [B, T, H, V].
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& gate);

  RetNetOptions options;                ///< the options of the module
  std::optional<torch::Tensor> weight;  ///< [V]; absent unless affine
  std::optional<torch::Tensor> bias;    ///< [V]; absent unless affine and "layer"

 private:
  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(GatedGroupNorm);

}  // namespace retnet::nn
