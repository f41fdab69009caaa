// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../version.h"

namespace retnet::ops {

/// The linear layer of a decoding step: torch's linear, out = x weight^T + bias, without a gradient.
///
///   x       [..., in]   float32, float64, bfloat16 or float16; any strides
///   weight  [out, in]   x's dtype
///   bias    [out]       x's dtype
///
/// Returns [..., out] of x's dtype.
///
/// On the CPU up to 4 rows x of bfloat16 take a kernel that reads a weight of dense rows at the
/// speed of memory: exact products, sums in float32, bias added, rounded once. The bits of a row
/// depend neither on the other rows, up to 4, nor on the number of threads. The environment variable
/// RETNET_CPU_LINEAR=0, read at each call, turns it off. All other calls are torch's.
///
/// Not differentiable: raises when grad mode is on and an input requires grad.
RETNET_API at::Tensor linear_step(const at::Tensor& x, const at::Tensor& weight,
                                  const std::optional<at::Tensor>& bias = std::nullopt);

/// Whether there may be a kernel for x and weight, by their device, dtype and number of rows. Else
/// linear_step is torch's linear.
RETNET_API bool has_linear_step(const at::Tensor& x, const at::Tensor& weight);

/// Every implementation's first statement: shapes, dtypes and devices.
void check_linear_step(const at::Tensor& x, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias);

}  // namespace retnet::ops
