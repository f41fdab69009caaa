// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "kernels/cuda/dtype.h"

namespace retnet::ops::cuda {

/// Returns the dtype as kernels name it, or nothing if no kernel supports it.
inline std::optional<kernels::cuda::DType> kernel_dtype(const at::Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return kernels::cuda::DType::kFloat32;
    case at::kHalf:
      return kernels::cuda::DType::kFloat16;
    case at::kBFloat16:
      return kernels::cuda::DType::kBFloat16;
    default:
      return std::nullopt;
  }
}

}  // namespace retnet::ops::cuda
