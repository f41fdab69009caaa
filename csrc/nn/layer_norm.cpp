// SPDX-License-Identifier: Apache-2.0
#include "nn/layer_norm.h"

#include <torch/nn/init.h>

#include "nn/skip_init.h"

namespace retnet::nn {

LayerNormImpl::LayerNormImpl(const RetNetOptions& options,
                             const torch::TensorOptions& tensor_options)
    : options(options.validated()), tensor_options_(tensor_options) {
  reset();
}

void LayerNormImpl::reset() {
  const auto empty = [&] { return torch::empty({options.embed_dim()}, tensor_options_); };
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
  stream << "retnet::nn::LayerNorm(" << options.norm() << ", " << options.embed_dim()
         << ", eps=" << options.norm_eps() << ")";
}

torch::Tensor LayerNormImpl::forward(const torch::Tensor& x) {
  if (options.norm() == "rms") {
    return torch::rms_norm(x, {options.embed_dim()}, weight, options.norm_eps());
  }
  return torch::layer_norm(x, {options.embed_dim()}, weight, bias, options.norm_eps());
}

}  // namespace retnet::nn
