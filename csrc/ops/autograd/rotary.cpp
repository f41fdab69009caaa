// SPDX-License-Identifier: Apache-2.0
#include "ops/rotary.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd/not_differentiable.h"

namespace retnet::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

class RotaryFunction : public torch::autograd::Function<RotaryFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Variable& q, const Variable& k,
                               const at::Tensor& positions, const at::Tensor& frequencies,
                               std::string style) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [rotated_q, rotated_k] = rotary(q, k, positions, frequencies, style);
    ctx->save_for_backward({positions, frequencies});
    ctx->saved_data["style"] = std::move(style);
    ctx->set_materialize_grads(false);
    return {rotated_q, rotated_k};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto present = [](const at::Tensor& x) {
      return x.defined() ? std::optional(x) : std::nullopt;
    };
    const auto [grad_q, grad_k] =
        rotary_backward(present(grads[0]), present(grads[1]), saved[0], saved[1],
                        ctx->saved_data["style"].toStringRef(),
                        {ctx->needs_input_grad(0), ctx->needs_input_grad(1)});
    return {grad_q, grad_k, {}, {}, {}};
  }
};

std::tuple<at::Tensor, at::Tensor> rotary_autograd(const at::Tensor& q, const at::Tensor& k,
                                                   const at::Tensor& positions,
                                                   const at::Tensor& frequencies,
                                                   std::string_view style) {
  refuse_gradient("rotary", {{"frequencies", frequencies}}, "rotary is not differentiable in them");
  const auto result = RotaryFunction::apply(q, k, positions, frequencies, std::string(style));
  return {result[0], result[1]};
}

std::tuple<at::Tensor, at::Tensor> rotary_backward_autograd(
    const std::optional<at::Tensor>& grad_rotated_q,
    const std::optional<at::Tensor>& grad_rotated_k, const at::Tensor& positions,
    const at::Tensor& frequencies, std::string_view style, std::array<bool, 2> output_mask) {
  auto grads = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return rotary_backward(grad_rotated_q, grad_rotated_k, positions, frequencies, style,
                           output_mask);
  }();
  auto& [grad_q, grad_k] = grads;
  refuse_double_backward("rotary_backward", {grad_rotated_q, grad_rotated_k, frequencies},
                         {&grad_q, &grad_k});
  return grads;
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, Autograd, m) {
  m.impl("rotary", rotary_autograd);
  m.impl("rotary_backward", rotary_backward_autograd);
}

}  // namespace retnet::ops
