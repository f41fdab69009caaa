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

/// y = norm(x) * swish(gate), the norm taken over each head's V channels (Sun et al. 2023, Eq. 8).
///
/// Keys: `weight` [V] and, for the "layer" kind, `bias` [V], if `options.group_norm_affine()`;
/// otherwise none.
class RETNET_API GatedGroupNormImpl : public torch::nn::Cloneable<GatedGroupNormImpl> {
 public:
  /// `tensor_options` says where and in which dtype the parameters are made.
  explicit GatedGroupNormImpl(const RetNetOptions& options,
                              const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// weight = 1, bias = 0.
  void reset_parameters();

  void pretty_print(std::ostream& stream) const override;

  /// x, gate [B, T, H, V]. Returns [B, T, H, V].
  torch::Tensor forward(const torch::Tensor& x, const torch::Tensor& gate);

  RetNetOptions options;                ///< what it was made from
  std::optional<torch::Tensor> weight;  ///< [V]; absent unless affine
  std::optional<torch::Tensor> bias;    ///< [V]; absent unless affine and of the "layer" kind

 private:
  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(GatedGroupNorm);

}  // namespace retnet::nn
