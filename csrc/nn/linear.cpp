// SPDX-License-Identifier: Apache-2.0
#include "nn/linear.h"

#include <torch/nn/init.h>

#include <cmath>

#include "nn/skip_init.h"
#include "ops/linear.h"

namespace retnet::nn {

LinearImpl::LinearImpl(int64_t in_features, int64_t out_features, bool bias,
                       const torch::TensorOptions& tensor_options)
    : in_features_(in_features),
      out_features_(out_features),
      has_bias_(bias),
      tensor_options_(tensor_options) {
  reset();
}

void LinearImpl::reset() {
  weight =
      register_parameter("weight", torch::empty({out_features_, in_features_}, tensor_options_));
  if (has_bias_) {
    bias = register_parameter("bias", torch::empty({out_features_}, tensor_options_));
  }
  reset_parameters();
}

void LinearImpl::reset_parameters() {
  if (SkipInit::active()) return;
  torch::nn::init::kaiming_uniform_(weight, std::sqrt(5.0));
  if (bias.defined()) {
    const auto bound = 1 / std::sqrt(static_cast<double>(in_features_));
    torch::nn::init::uniform_(bias, -bound, bound);
  }
}

void LinearImpl::pretty_print(std::ostream& stream) const {
  stream << std::boolalpha << "retnet::nn::Linear(in_features=" << in_features_
         << ", out_features=" << out_features_ << ", bias=" << has_bias_ << ")";
}

torch::Tensor LinearImpl::forward(const torch::Tensor& x) { return linear(x, weight, bias); }

torch::Tensor linear(const torch::Tensor& x, const torch::Tensor& weight,
                     const torch::Tensor& bias) {
  const auto given = bias.defined() ? std::optional(bias) : std::nullopt;
  return ops::has_faster_linear(x, weight, torch::GradMode::is_enabled())
             ? ops::linear(x, weight, given)
             : torch::linear(x, weight, given);
}

}  // namespace retnet::nn
