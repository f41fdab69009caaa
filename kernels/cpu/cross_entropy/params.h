// SPDX-License-Identifier: Apache-2.0
//
// The cross-entropy of one row of logits, and its gradient.
#pragma once

#include <cstdint>

namespace retnet::kernels::cpu {

/// The kernel returns the loss, log sum_c exp(x_c) - x_target, and overwrites the logits x by its
/// gradient, softmax(x)_c - (c == target).
struct CrossEntropyParams {
  int64_t classes;
  int64_t target;
  void* logits;         // [classes], dense, of the kernel's dtype
  float* exponentials;  // [classes], workspace
};

}  // namespace retnet::kernels::cpu
