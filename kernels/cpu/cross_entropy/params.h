// SPDX-License-Identifier: Apache-2.0
//
// The cross-entropy of one row of logits on the CPU, and its gradient.
#pragma once

#include <cstdint>

namespace retnet::kernels::cpu {

/// Returned is the loss, log sum_c exp(x_c) - x_target. Its gradient is softmax(x)_c - (c == target).
struct CrossEntropyParams {
  int64_t classes;
  int64_t target;
  void* logits;         // [classes] x, dense, of the kernel's dtype; overwritten by the gradient
  float* exponentials;  // [classes] scratch
};

}  // namespace retnet::kernels::cpu
