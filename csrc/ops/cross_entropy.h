// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "../version.h"

namespace retnet::ops {

/// Computes the cross-entropy in nats, summed over rows, and overwrites the logits with its
/// gradient. For the rows n whose target is not ignore_index,
///
///     loss         = sum_n log sum_c exp(logits[n, c]) - logits[n, targets[n]]
///     logits[n, c] <- softmax(logits[n])_c - (c == targets[n])        (other rows: 0)
///
///   logits   [N, V]  float32, float64, bfloat16 or float16, V >= 1. Rows must be contiguous;
///                    the row stride is free
///   targets  [N]     int64, in [0, V) or ignore_index, any strides. Otherwise the CPU raises
///                    IndexError before it writes anything. CUDA gives a device-side assertion, as
///                    in torch
///
/// Returns the loss, a scalar. It is float64 for float64 logits, else float32. The computation uses
/// that dtype. On the CPU, the losses of the rows are added in order in float64. The gradient is
/// rounded once.
///
/// - A logit of -inf has a gradient of 0, or of -1 at the target.
/// - A row with NaN or +inf gives NaN throughout, unless it is ignored. So does a row that holds
///   only -inf.
///
/// On the CPU, each thread needs a row of float32 as workspace. On other devices, 16-bit logits are
/// copied to float32.
///
/// The autograd graph does not record this operator. It raises if grad mode is on and logits
/// requires grad. It increments the version of logits.
RETNET_API at::Tensor cross_entropy_with_gradient_(const at::Tensor& logits,
                                                   const at::Tensor& targets,
                                                   int64_t ignore_index = -100);

/// Checks shapes, dtypes and devices. Every implementation calls it first.
void check_cross_entropy(const at::Tensor& logits, const at::Tensor& targets);

/// Checks strides and, on the CPU, the targets. Every implementation calls it second, except Meta,
/// which has no memory.
void check_cross_entropy_memory(const at::Tensor& logits, const at::Tensor& targets,
                                int64_t ignore_index);

}  // namespace retnet::ops
