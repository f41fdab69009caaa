// SPDX-License-Identifier: Apache-2.0
#include "nn/feed_forward.h"

namespace retnet::nn {

FeedForwardImpl::FeedForwardImpl(const RetNetOptions& options,
                                 const torch::TensorOptions& tensor_options)
    : options(options.validated()), tensor_options_(tensor_options) {
  reset();
}

void FeedForwardImpl::reset() {
  const auto d = options.embed_dim(), inner = options.ffn_dim();
  if (options.ffn_gated()) {
    gate_proj = register_module("gate_proj", Linear(d, inner, options.bias(), tensor_options_));
  }
  up_proj = register_module("up_proj", Linear(d, inner, options.bias(), tensor_options_));
  if (options.ffn_inner_norm()) {
    inner_norm = register_module("inner_norm", LayerNorm(options, inner, tensor_options_));
  }
  down_proj = register_module("down_proj", Linear(inner, d, options.bias(), tensor_options_));
}

void FeedForwardImpl::reset_parameters() {
  if (gate_proj) gate_proj->reset_parameters();
  up_proj->reset_parameters();
  if (inner_norm) inner_norm->reset_parameters();
  down_proj->reset_parameters();
}

void FeedForwardImpl::pretty_print(std::ostream& stream) const {
  stream << std::boolalpha << "retnet::nn::FeedForward(gated=" << options.ffn_gated()
         << ", activation=" << options.activation() << ")";
}

torch::Tensor FeedForwardImpl::forward(const torch::Tensor& x) {
  const auto act = [&](const torch::Tensor& y) {
    return options.activation() == "swish" ? torch::silu(y) : torch::gelu(y);
  };
  const auto inner = gate_proj ? act(gate_proj(x)) * up_proj(x) : act(up_proj(x));
  return down_proj(inner_norm ? inner_norm(inner) : inner);
}

}  // namespace retnet::nn
