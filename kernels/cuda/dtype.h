// SPDX-License-Identifier: Apache-2.0
//
// Element types as the callers of kernels name them. This file needs no header of CUDA or torch.
#pragma once

namespace retnet::kernels::cuda {

enum class DType : int { kFloat32, kFloat16, kBFloat16 };

constexpr int element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace retnet::kernels::cuda
