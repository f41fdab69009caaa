// SPDX-License-Identifier: Apache-2.0
#include "nn/decoder_layer.h"

namespace retnet::nn {

DecoderLayerImpl::DecoderLayerImpl(const RetNetOptions& options,
                                   const torch::TensorOptions& tensor_options)
    : options(options.validated()), tensor_options_(tensor_options) {
  reset();
}

void DecoderLayerImpl::reset() {
  retention_norm = register_module("retention_norm", LayerNorm(options, tensor_options_));
  retention = register_module("retention", MultiScaleRetention(options, tensor_options_));
  ffn_norm = register_module("ffn_norm", LayerNorm(options, tensor_options_));
  ffn = register_module("ffn", FeedForward(options, tensor_options_));
}

void DecoderLayerImpl::reset_parameters() {
  retention_norm->reset_parameters();
  retention->reset_parameters();
  ffn_norm->reset_parameters();
  ffn->reset_parameters();
}

void DecoderLayerImpl::pretty_print(std::ostream& stream) const {
  stream << std::boolalpha << "retnet::nn::DecoderLayer(pre_norm=" << options.pre_norm()
         << ", residual_scale=" << options.residual_scale() << ")";
}

std::tuple<torch::Tensor, torch::Tensor> DecoderLayerImpl::forward(
    const torch::Tensor& x, const std::optional<torch::Tensor>& state,
    const std::optional<torch::Tensor>& positions, const std::optional<torch::Tensor>& cu_seqlens,
    std::string_view form, bool inplace) {
  const bool pre_norm = options.pre_norm();
  const auto [retained, after] = retention->forward(pre_norm ? retention_norm(x) : x, state,
                                                    positions, cu_seqlens, form, inplace);
  auto y = torch::add(retained, x, options.residual_scale());
  if (!pre_norm) y = retention_norm(y);
  auto z = torch::add(ffn(pre_norm ? ffn_norm(y) : y), y, options.residual_scale());
  if (!pre_norm) z = ffn_norm(z);
  return {z, after};
}

}  // namespace retnet::nn
