// SPDX-License-Identifier: Apache-2.0
#include "ops/composite/cross_entropy.h"

#include <torch/library.h>

#include "ops/check.h"
#include "ops/cross_entropy.h"

namespace retnet::ops::composite {

at::Tensor cross_entropy_with_gradient_(const at::Tensor& logits, const at::Tensor& targets,
                                        int64_t ignore_index) {
  check_cross_entropy(logits, targets);
  check_cross_entropy_memory(logits, targets, ignore_index);
  const auto ignored = targets.eq(ignore_index).unsqueeze_(1);  // [N, 1]
  const auto index = targets.unsqueeze(1).masked_fill(ignored, 0);
  // x is the logits themselves or a copy in float32. All that follows overwrites it.
  const auto x = logits.to(accumulate_dtype(logits));
  x.sub_(x.amax(1, /*keepdim=*/true));
  const auto at_target = x.gather(1, index);
  x.exp_();
  const auto sum = x.sum(1, /*keepdim=*/true);
  x.div_(sum);
  x.scatter_(1, index, x.gather(1, index).sub_(1));
  x.masked_fill_(ignored, 0);
  if (!x.is_same(logits)) logits.copy_(x);
  return sum.log().sub_(at_target).masked_fill_(ignored, 0).sum();
}

}  // namespace retnet::ops::composite

namespace retnet::ops {

TORCH_LIBRARY_IMPL(retnet, CompositeExplicitAutograd, m) {
  m.impl("cross_entropy_with_gradient_", composite::cross_entropy_with_gradient_);
}

}  // namespace retnet::ops
