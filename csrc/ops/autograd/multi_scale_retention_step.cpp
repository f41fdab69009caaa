// SPDX-License-Identifier: Apache-2.0
#include "ops/multi_scale_retention_step.h"

#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include "ops/autograd/not_differentiable.h"

namespace retnet::ops {
namespace {

at::Tensor multi_scale_retention_step_autograd(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
    const at::Tensor& log_decay, const at::Tensor& state, const at::Tensor& positions,
    const at::Tensor& frequencies, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double eps, std::string_view norm,
    std::string_view style, std::optional<double> scale, const std::optional<at::Tensor>& slots) {
  refuse_gradient("multi_scale_retention_step",
                  {{"q", q},
                   {"k", k},
                   {"v", v},
                   {"gate", gate},
                   {"log_decay", log_decay},
                   {"state", state},
                   {"frequencies", frequencies},
                   {"weight", weight},
                   {"bias", bias}},
                  "the step has no gradient: call it under torch.no_grad(), or call rotary, "
                  "retention and gated_group_norm");
  at::AutoDispatchBelowAutograd guard;
  return multi_scale_retention_step(q, k, v, gate, log_decay, state, positions, frequencies, weight,
                                    bias, eps, norm, style, scale, slots);
}

/// Increments the version of the argument that is written. The dispatcher does not do it by itself.
at::Tensor multi_scale_retention_step_inplace(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
    const at::Tensor& log_decay, const at::Tensor& state, const at::Tensor& positions,
    const at::Tensor& frequencies, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double eps, std::string_view norm,
    std::string_view style, std::optional<double> scale, const std::optional<at::Tensor>& slots) {
  auto out = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return multi_scale_retention_step(q, k, v, gate, log_decay, state, positions, frequencies,
                                      weight, bias, eps, norm, style, scale, slots);
  }();
  torch::autograd::increment_version(state);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, Autograd, m) {
  m.impl("multi_scale_retention_step", multi_scale_retention_step_autograd);
}
TORCH_LIBRARY_IMPL(retnet, ADInplaceOrView, m) {
  m.impl("multi_scale_retention_step", multi_scale_retention_step_inplace);
}

}  // namespace retnet::ops
