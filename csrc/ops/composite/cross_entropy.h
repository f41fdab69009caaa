// SPDX-License-Identifier: Apache-2.0
//
// cross_entropy_with_gradient_, composed of ATen operators.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace retnet::ops::composite {

at::Tensor cross_entropy_with_gradient_(const at::Tensor& logits, const at::Tensor& targets,
                                        int64_t ignore_index);

}  // namespace retnet::ops::composite
