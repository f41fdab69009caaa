// SPDX-License-Identifier: Apache-2.0
#include "ops/cross_entropy.h"

#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include "ops/autograd/not_differentiable.h"

namespace retnet::ops {
namespace {

at::Tensor cross_entropy_autograd(const at::Tensor& logits, const at::Tensor& targets,
                                  int64_t ignore_index) {
  refuse_gradient("cross_entropy_with_gradient_", {{"logits", logits}},
                  "their gradient is what they become: pass logits.detach()");
  at::AutoDispatchBelowAutograd guard;
  return cross_entropy_with_gradient_(logits, targets, ignore_index);
}

/// Increments the version of the argument that is written. The dispatcher does not do it by itself.
at::Tensor cross_entropy_inplace(const at::Tensor& logits, const at::Tensor& targets,
                                 int64_t ignore_index) {
  auto loss = [&] {
    at::AutoDispatchBelowADInplaceOrView guard;
    return cross_entropy_with_gradient_(logits, targets, ignore_index);
  }();
  torch::autograd::increment_version(logits);
  return loss;
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, Autograd, m) {
  m.impl("cross_entropy_with_gradient_", cross_entropy_autograd);
}
TORCH_LIBRARY_IMPL(retnet, ADInplaceOrView, m) {
  m.impl("cross_entropy_with_gradient_", cross_entropy_inplace);
}

}  // namespace retnet::ops
