// SPDX-License-Identifier: Apache-2.0
#include "nn/gated_group_norm.h"

#include <torch/nn/init.h>

#include "nn/skip_init.h"
#include "ops/gated_group_norm.h"

namespace retnet::nn {

GatedGroupNormImpl::GatedGroupNormImpl(const RetNetOptions& options,
                                       const torch::TensorOptions& tensor_options)
    : options(options.validated()), tensor_options_(tensor_options) {
  reset();
}

void GatedGroupNormImpl::reset() {
  const auto empty = [&] { return torch::empty({options.value_dim()}, tensor_options_); };
  if (options.group_norm_affine()) {
    weight = register_parameter("weight", empty());
    if (options.group_norm() == "layer") bias = register_parameter("bias", empty());
  }
  reset_parameters();
}

void GatedGroupNormImpl::reset_parameters() {
  if (SkipInit::active()) return;
  if (weight) torch::nn::init::ones_(*weight);
  if (bias) torch::nn::init::zeros_(*bias);
}

void GatedGroupNormImpl::pretty_print(std::ostream& stream) const {
  stream << std::boolalpha << "retnet::nn::GatedGroupNorm(" << options.group_norm()
         << ", eps=" << options.group_norm_eps() << ", affine=" << options.group_norm_affine()
         << ")";
}

torch::Tensor GatedGroupNormImpl::forward(const torch::Tensor& x, const torch::Tensor& gate) {
  return ops::gated_group_norm(x, gate, weight, bias, options.group_norm_eps(),
                               options.group_norm());
}

}  // namespace retnet::nn
