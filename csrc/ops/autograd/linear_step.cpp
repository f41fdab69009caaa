// SPDX-License-Identifier: Apache-2.0
#include "ops/linear_step.h"

#include <torch/library.h>

#include "ops/autograd/not_differentiable.h"

namespace retnet::ops {
namespace {

at::Tensor linear_step_autograd(const at::Tensor& x, const at::Tensor& weight,
                                const std::optional<at::Tensor>& bias) {
  refuse_gradient("linear_step", {{"x", x}, {"weight", weight}, {"bias", bias}},
                  "the step has no gradient: call it under torch.no_grad(), or torch's linear");
  at::AutoDispatchBelowAutograd guard;
  return linear_step(x, weight, bias);
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, Autograd, m) { m.impl("linear_step", linear_step_autograd); }

}  // namespace retnet::ops
