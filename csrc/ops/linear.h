// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "../version.h"

namespace retnet::ops {

/// torch's linear, out = x weight^T + bias, by faster products on a CPU.
///
///   x       [..., in]   float32, float64, bfloat16 or float16; any strides
///   weight  [out, in]   x's dtype
///   bias    [out]       x's dtype
///
/// Returns [..., out] of x's dtype.
///
/// - Up to 4 rows x of bfloat16, and no gradient: a kernel that reads a weight of dense rows at the
///   speed of memory. Exact products, sums in float32, bias added, rounded once. The bits of a row
///   depend neither on the other rows, up to 4, nor on the number of threads.
/// - 128 rows x of float32 and more, `in` and `out` of 256 and more, on a CPU of AMD with AVX-512:
///   oneDNN's product, also for the gradient of x. torch takes MKL's, which leaves AVX-512 unused
///   there. Not where torch's own switch of oneDNN (at::globalContext().setUserEnabledMkldnn) is off.
///
/// All else is torch's linear. The environment variable RETNET_CPU_LINEAR, read at each call: "0"
/// turns both off, "1" takes oneDNN's product on any CPU for which torch has it.
RETNET_API at::Tensor linear(const at::Tensor& x, const at::Tensor& weight,
                             const std::optional<at::Tensor>& bias = std::nullopt);

/// Whether `linear` computes this call by a faster product than torch's. Modules ask this, and call
/// torch's linear if the answer is no: it accepts more kinds of tensors, and users know its errors.
///
/// `needs_gradient`: x, weight or bias may need one, which the kernel for a few rows does not give.
RETNET_API bool has_faster_linear(const at::Tensor& x, const at::Tensor& weight,
                                  bool needs_gradient);

/// The most rows x that the kernel for a few rows takes. Code that is traced compares them itself:
/// its sizes may be symbols, for which `has_faster_linear` answers no.
RETNET_API int64_t linear_few_rows();

/// Every implementation's first statement: shapes, dtypes and devices.
void check_linear(const at::Tensor& x, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias);

}  // namespace retnet::ops
