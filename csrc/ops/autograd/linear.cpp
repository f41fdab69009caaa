// SPDX-License-Identifier: Apache-2.0
#include "ops/linear.h"

#include <ATen/functorch/DynamicLayer.h>
#include <ATen/ops/linear.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

namespace retnet::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::isFwGradDefined;
using torch::autograd::Variable;
using torch::autograd::variable_list;

/// The derivatives of a linear layer are linear layers and matrix products, which have derivatives
/// again.
class LinearFunction : public torch::autograd::Function<LinearFunction> {
 public:
  static Variable forward(AutogradContext* ctx, const Variable& x, const Variable& weight,
                          const std::optional<at::Tensor>& bias) {
    at::AutoDispatchBelowADInplaceOrView guard;
    // x is kept only for the gradient of weight, and weight only for the gradient of x.
    ctx->save_for_backward(
        {weight.requires_grad() ? x : at::Tensor(), x.requires_grad() ? weight : at::Tensor()});
    ctx->saved_data["bias"] = bias.has_value();
    ctx->set_materialize_grads(false);
    return ops::linear(x, weight, bias);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list result(3);
    if (!grads[0].defined()) return result;
    const auto saved = ctx->get_saved_variables();
    // flatten() is not used, because the vmap of batched gradients has no rule for it.
    const auto rows = [](const at::Tensor& t) { return t.reshape({-1, t.size(-1)}); };
    if (ctx->needs_input_grad(0)) result[0] = ops::linear(grads[0], saved[1].t());
    if (ctx->needs_input_grad(1)) result[1] = rows(grads[0]).t().mm(rows(saved[0]));
    if (ctx->saved_data["bias"].toBool() && ctx->needs_input_grad(2)) {
      result[2] = rows(grads[0]).sum(0);
    }
    return result;
  }
};

bool needs_gradient(const at::Tensor& x, const at::Tensor& weight,
                    const std::optional<at::Tensor>& bias) {
  return at::GradMode::is_enabled() &&
         (x.requires_grad() || weight.requires_grad() || (bias && bias->requires_grad()));
}

/// Whether only torch's linear has the derivative. That is so in forward mode and under the
/// transforms of torch.func, except vmap, which has a rule.
bool is_transformed(const at::Tensor& x, const at::Tensor& weight,
                    const std::optional<at::Tensor>& bias) {
  return at::functorch::maybeCurrentDynamicLayer() || isFwGradDefined(x) ||
         isFwGradDefined(weight) || isFwGradDefined(bias);
}

at::Tensor linear_autograd(const at::Tensor& x, const at::Tensor& weight,
                           const std::optional<at::Tensor>& bias) {
  check_linear(x, weight, bias);
  const bool asks = needs_gradient(x, weight, bias);
  if (is_transformed(x, weight, bias) || !has_faster_linear(x, weight, asks)) {
    return at::linear(x, weight, bias);
  }
  if (asks) return LinearFunction::apply(x, weight, bias);
  at::AutoDispatchBelowAutograd guard;
  return ops::linear(x, weight, bias);
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, Autograd, m) { m.impl("linear", linear_autograd); }
TORCH_LIBRARY_IMPL(retnet, FuncTorchBatchedDecomposition, m) { m.impl("linear", at::linear); }

}  // namespace retnet::ops
