// SPDX-License-Identifier: Apache-2.0
//
// Element types as the kernels' callers name them: no CUDA and no torch header needed.
#pragma once

namespace retnet::kernels::cuda {

enum class DType : int { kFloat32, kFloat16, kBFloat16 };

constexpr int element_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace retnet::kernels::cuda
