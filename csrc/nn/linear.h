// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <ostream>

#include "../version.h"

namespace retnet::nn {

/// y = x weight^T + bias. torch's `nn::Linear`, made on the device and in the dtype given: torch's own
/// is always made on the CPU in the default dtype, too large there for the models here. Where that is
/// faster, on a CPU, it is `ops::linear`.
///
/// Keys: `weight` [out_features, in_features] and, unless left out, `bias` [out_features].
class RETNET_API LinearImpl : public torch::nn::Cloneable<LinearImpl> {
 public:
  /// `tensor_options` says where and in which dtype the parameters are made.
  LinearImpl(int64_t in_features, int64_t out_features, bool bias,
             const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// torch's default: uniform within in_features^(-1/2) of 0.
  void reset_parameters();

  void pretty_print(std::ostream& stream) const override;

  /// x [..., in_features]. Returns [..., out_features].
  torch::Tensor forward(const torch::Tensor& x);

  torch::Tensor weight;  ///< [out_features, in_features]
  torch::Tensor bias;    ///< [out_features]; undefined where left out

 private:
  int64_t in_features_, out_features_;
  bool has_bias_;
  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(Linear);

/// torch's linear as `Linear` computes it; an undefined bias is left out.
RETNET_API torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight,
                                const torch::Tensor& bias = {});

}  // namespace retnet::nn
