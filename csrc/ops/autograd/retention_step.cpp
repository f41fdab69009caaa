// SPDX-License-Identifier: Apache-2.0
#include "ops/retention_step.h"

#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include "ops/autograd/not_differentiable.h"

namespace retnet::ops {
namespace {

at::Tensor retention_step_autograd(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const at::Tensor& log_decay, const at::Tensor& state,
                                   std::optional<double> scale,
                                   const std::optional<at::Tensor>& slots) {
  refuse_gradient("retention_step",
                  {{"q", q}, {"k", k}, {"v", v}, {"log_decay", log_decay}, {"state", state}},
                  "the step has no gradient: call it under torch.no_grad(), or call retention");
  at::AutoDispatchBelowAutograd guard;
  return retention_step(q, k, v, log_decay, state, scale, slots);
}

/// Increments the version of the argument that is written. The dispatcher does not do it by itself.
at::Tensor retention_step_inplace(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const at::Tensor& log_decay, const at::Tensor& state,
                                  std::optional<double> scale,
                                  const std::optional<at::Tensor>& slots) {
  auto out = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return retention_step(q, k, v, log_decay, state, scale, slots);
  }();
  torch::autograd::increment_version(state);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, Autograd, m) { m.impl("retention_step", retention_step_autograd); }
TORCH_LIBRARY_IMPL(retnet, ADInplaceOrView, m) { m.impl("retention_step", retention_step_inplace); }

}  // namespace retnet::ops
