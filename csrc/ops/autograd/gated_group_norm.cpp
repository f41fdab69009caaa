// SPDX-License-Identifier: Apache-2.0
#include "ops/gated_group_norm.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd/not_differentiable.h"

namespace retnet::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

class GatedGroupNormFunction : public torch::autograd::Function<GatedGroupNormFunction> {
 public:
  static Variable forward(AutogradContext* ctx, const Variable& x,
                          const std::optional<at::Tensor>& gate,
                          const std::optional<at::Tensor>& weight,
                          const std::optional<at::Tensor>& bias, double eps, std::string norm) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto out = gated_group_norm(x, gate, weight, bias, eps, norm);
    ctx->save_for_backward({x, gate.value_or(at::Tensor()), weight.value_or(at::Tensor()),
                            bias.value_or(at::Tensor())});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["norm"] = std::move(norm);
    ctx->set_materialize_grads(false);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return variable_list(6);
    const auto saved = ctx->get_saved_variables();
    // An absent input has no edge in the graph, so the edges of those after it move up.
    size_t edge = 0;
    std::array<std::optional<at::Tensor>, 4> inputs;
    std::array<bool, 4> output_mask{};
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!saved[i].defined()) continue;
      inputs[i] = saved[i];
      output_mask[i] = ctx->needs_input_grad(edge++);
    }
    const auto [grad_x, grad_gate, grad_weight, grad_bias] = gated_group_norm_backward(
        grads[0], *inputs[0], inputs[1], inputs[2], inputs[3], ctx->saved_data["eps"].toDouble(),
        ctx->saved_data["norm"].toStringRef(), output_mask);
    return {grad_x, grad_gate, grad_weight, grad_bias, {}, {}};
  }
};

at::Tensor gated_group_norm_autograd(const at::Tensor& x, const std::optional<at::Tensor>& gate,
                                     const std::optional<at::Tensor>& weight,
                                     const std::optional<at::Tensor>& bias, double eps,
                                     std::string_view norm) {
  return GatedGroupNormFunction::apply(x, gate, weight, bias, eps, std::string(norm));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gated_group_norm_backward_autograd(
    const at::Tensor& grad_out, const at::Tensor& x, const std::optional<at::Tensor>& gate,
    const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, double eps,
    std::string_view norm, std::array<bool, 4> output_mask) {
  auto grads = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return gated_group_norm_backward(grad_out, x, gate, weight, bias, eps, norm, output_mask);
  }();
  auto& [grad_x, grad_gate, grad_weight, grad_bias] = grads;
  refuse_double_backward("gated_group_norm_backward", {grad_out, x, gate, weight, bias},
                         {&grad_x, &grad_gate, &grad_weight, &grad_bias});
  return grads;
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, Autograd, m) {
  m.impl("gated_group_norm", gated_group_norm_autograd);
  m.impl("gated_group_norm_backward", gated_group_norm_backward_autograd);
}

}  // namespace retnet::ops
