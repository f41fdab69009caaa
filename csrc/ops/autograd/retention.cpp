// SPDX-License-Identifier: Apache-2.0
#include "ops/retention.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/autograd/not_differentiable.h"

namespace retnet::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

class RetentionFunction : public torch::autograd::Function<RetentionFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const Variable& q, const Variable& k,
                               const Variable& v, const Variable& log_decay,
                               const std::optional<at::Tensor>& initial_state,
                               std::optional<double> scale, std::string form,
                               std::optional<int64_t> chunk_size,
                               const std::optional<at::Tensor>& cu_seqlens) {
    at::AutoDispatchBelowADInplaceOrView guard;
    auto [out, final_state] =
        retention(q, k, v, log_decay, initial_state, scale, form, chunk_size, cu_seqlens);
    ctx->save_for_backward({q, k, v, log_decay, initial_state.value_or(at::Tensor()),
                            cu_seqlens.value_or(at::Tensor())});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["form"] = std::move(form);
    ctx->saved_data["chunk_size"] = chunk_size;
    ctx->set_materialize_grads(false);
    return {out, final_state};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const auto present = [](const at::Tensor& x) {
      return x.defined() ? std::optional(x) : std::nullopt;
    };
    const auto initial_state = present(saved[4]);
    const auto [grad_q, grad_k, grad_v, grad_log_decay, grad_initial_state] = retention_backward(
        present(grads[0]), present(grads[1]), saved[0], saved[1], saved[2], saved[3], initial_state,
        ctx->saved_data["scale"].toOptional<double>(), ctx->saved_data["form"].toStringRef(),
        ctx->saved_data["chunk_size"].toOptional<int64_t>(), present(saved[5]),
        {ctx->needs_input_grad(0), ctx->needs_input_grad(1), ctx->needs_input_grad(2),
         ctx->needs_input_grad(3), initial_state && ctx->needs_input_grad(4)});
    return {grad_q, grad_k, grad_v, grad_log_decay, grad_initial_state, {}, {}, {}, {}};
  }
};

std::tuple<at::Tensor, at::Tensor> retention_autograd(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state, std::optional<double> scale,
    std::string_view form, std::optional<int64_t> chunk_size,
    const std::optional<at::Tensor>& cu_seqlens) {
  const auto result = RetentionFunction::apply(q, k, v, log_decay, initial_state, scale,
                                               std::string(form), chunk_size, cu_seqlens);
  return {result[0], result[1]};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> retention_backward_autograd(
    const std::optional<at::Tensor>& grad_out, const std::optional<at::Tensor>& grad_final_state,
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state, std::optional<double> scale,
    std::string_view form, std::optional<int64_t> chunk_size,
    const std::optional<at::Tensor>& cu_seqlens, std::array<bool, 5> output_mask) {
  auto grads = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return retention_backward(grad_out, grad_final_state, q, k, v, log_decay, initial_state, scale,
                              form, chunk_size, cu_seqlens, output_mask);
  }();
  auto& [grad_q, grad_k, grad_v, grad_log_decay, grad_initial_state] = grads;
  refuse_double_backward("retention_backward",
                         {grad_out, grad_final_state, q, k, v, log_decay, initial_state},
                         {&grad_q, &grad_k, &grad_v, &grad_log_decay, &grad_initial_state});
  return grads;
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, Autograd, m) {
  m.impl("retention", retention_autograd);
  m.impl("retention_backward", retention_backward_autograd);
}

}  // namespace retnet::ops
