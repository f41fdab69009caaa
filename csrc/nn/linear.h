// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <ostream>

#include "../version.h"

namespace retnet::nn {

/// Computes y = x weight^T + bias, like torch's `nn::Linear`. Its parameters are created on the
/// given device and in the given dtype. torch's module always creates them on the CPU in the
/// default dtype, where large models do not fit. On a CPU, it uses `ops::linear` if that is faster.
///
/// State-dict keys: `weight` [out_features, in_features], and `bias` [out_features] if there is
/// one.
class RETNET_API LinearImpl : public torch::nn::Cloneable<LinearImpl> {
 public:
  /// `tensor_options` gives the device and the dtype of the parameters.
  LinearImpl(int64_t in_features, int64_t out_features, bool bias,
             const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// Reinitialises the parameters uniformly within in_features^(-1/2) of 0, which is torch's
  /// default.
  void reset_parameters();

  void pretty_print(std::ostream& stream) const override;

  /// Applies the layer to x [..., in_features]. Returns [..., out_features].
  torch::Tensor forward(const torch::Tensor& x);

  torch::Tensor weight;  ///< [out_features, in_features]
  torch::Tensor bias;    ///< [out_features]; undefined if there is none

 private:
  int64_t in_features_, out_features_;
  bool has_bias_;
  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(Linear);

/// Computes the product of `Linear`. An undefined bias is left out.
RETNET_API torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight,
                                const torch::Tensor& bias = {});

}  // namespace retnet::nn
