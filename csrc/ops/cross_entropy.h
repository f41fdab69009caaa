// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "../version.h"

namespace retnet::ops {

/// Cross-entropy in nats, summed over rows, and its gradient in the place of the logits. With the
/// rows n whose target is not ignore_index,
///
///     loss         = sum_n log sum_c exp(logits[n, c]) - logits[n, targets[n]]
///     logits[n, c] <- softmax(logits[n])_c - (c == targets[n])        (other rows: 0)
///
///   logits   [N, V]  float32, float64, bfloat16 or float16, V >= 1; rows dense, any distance apart
///   targets  [N]     int64, in [0, V) or ignore_index, any strides. Else, on the CPU, an IndexError
///                    before anything is written; on CUDA a device-side assertion, as in torch
///
/// Returns the loss, a scalar: float64 of float64 logits, else float32. Computed in that dtype (on
/// the CPU the rows' losses are added in order in float64), the gradient rounded once. A logit of
/// -inf has a gradient of 0, or -1 at the target; a row with NaN or +inf gives NaN throughout, where
/// it is not ignored, and so does one of -inf alone. Memory: on the CPU a row of float32 for each
/// thread; elsewhere a copy of 16-bit logits in float32.
///
/// The autograd graph does not see it: raises when grad mode is on and logits require grad. The
/// version of logits goes up.
RETNET_API at::Tensor cross_entropy_with_gradient_(const at::Tensor& logits,
                                                   const at::Tensor& targets,
                                                   int64_t ignore_index = -100);

/// Every implementation's first statement: shapes, dtypes and devices.
void check_cross_entropy(const at::Tensor& logits, const at::Tensor& targets);

/// And, but for Meta, which has no memory, the second: strides, and on the CPU the targets.
void check_cross_entropy_memory(const at::Tensor& logits, const at::Tensor& targets,
                                int64_t ignore_index);

}  // namespace retnet::ops
