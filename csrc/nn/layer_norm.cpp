// SPDX-License-Identifier: Apache-2.0
#include "nn/layer_norm.h"

#include <torch/nn/init.h>

#include "nn/skip_init.h"

namespace retnet::nn {

LayerNormImpl::LayerNormImpl(const RetNetOptions& options,
                             const torch::TensorOptions& tensor_options)
    : LayerNormImpl(options, options.embed_dim(), tensor_options) {}

LayerNormImpl::LayerNormImpl(const RetNetOptions& options, int64_t channels,
                             const torch::TensorOptions& tensor_options)
    : options(options.validated()), channels_(channels), tensor_options_(tensor_options) {
  reset();
}

void LayerNormImpl::reset() {
  const auto empty = [&] { return torch::empty({channels_}, tensor_options_); };
  weight = register_parameter("weight", empty());
  if (options.norm() == "layer") bias = register_parameter("bias", empty());
  reset_parameters();
}

void LayerNormImpl::reset_parameters() {
  if (SkipInit::active()) return;
  torch::nn::init::ones_(weight);
  if (bias.defined()) torch::nn::init::zeros_(bias);
}

void LayerNormImpl::pretty_print(std::ostream& stream) const {
  stream << "retnet::nn::LayerNorm(" << options.norm() << ", " << channels_
         << ", eps=" << options.norm_eps() << ")";
}

torch::Tensor LayerNormImpl::forward(const torch::Tensor& x) {
  if (options.norm() == "rms") {
    return torch::rms_norm(x, {channels_}, weight, options.norm_eps());
  }
  return torch::layer_norm(x, {channels_}, weight, bias, options.norm_eps());
}

}  // namespace retnet::nn
