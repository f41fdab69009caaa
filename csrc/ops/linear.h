// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "../version.h"

namespace retnet::ops {

/// torch's linear, out = x weight^T + bias, with two faster products on a CPU.
///
///   x       [..., in]   float32, float64, bfloat16 or float16; any strides
///   weight  [out, in]   x's dtype
///   bias    [out]       x's dtype
///
/// Returns [..., out] of x's dtype.
///
/// - A kernel handles a few rows of bfloat16, up to `linear_few_rows`, without a gradient. It reads
///   a weight with dense rows at the speed of memory. Products are exact, sums are float32, and the
///   result with the bias is rounded once. The bits of a row depend neither on the other rows, if
///   these are so few, nor on the number of threads.
/// - oneDNN handles 128 or more rows of float32 if `in` and `out` are at least 256 and the CPU is
///   an AMD CPU with AVX-512. It also computes the gradient of x. torch uses MKL, which does not
///   use AVX-512 there. torch's own switch of oneDNN (at::globalContext().setUserEnabledMkldnn)
///   turns it off.
///
/// All other calls run torch's linear. The environment variable RETNET_CPU_LINEAR is read at each
/// call. "0" turns both products off. "1" uses oneDNN on any CPU for which torch has it.
RETNET_API at::Tensor linear(const at::Tensor& x, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias = std::nullopt);

/// Returns whether `linear` computes this call by a faster product than torch's. If it does not,
/// modules call torch's linear, which accepts more kinds of tensors and whose errors users know.
///
/// `needs_gradient` says that x, weight or bias may need a gradient. The kernel for a few rows does
/// not give one.
RETNET_API bool has_faster_linear(const at::Tensor& x, const at::Tensor& weight,
                                  bool needs_gradient);

/// Returns the largest number of rows of x that the kernel for a few rows supports. Code that is
/// traced compares it itself, because its sizes may be symbols. For symbols, `has_faster_linear`
/// returns false.
RETNET_API int64_t linear_few_rows();

/// Checks shapes, dtypes and devices. Every implementation calls it first.
void check_linear(const at::Tensor& x, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias);

}  // namespace retnet::ops
