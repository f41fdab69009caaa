// SPDX-License-Identifier: Apache-2.0
//
// What the rotation of a token and head costs, by formula. tests/kernels/cuda/kernel_counts.cpp counts the
// bytes in the SIMT emulator, and tools/kernel_report.py compares the two. This file is plain C++ for the
// host.
#pragma once

#include "kernels/cuda/rotary/plan.h"

namespace retnet::kernels::cuda {

// Bytes of device memory. q and k are read and written once. A token adds its position.
constexpr int64_t rotary_memory_bytes(DType dtype, int64_t head_dim_qk) {
  return (2 + 2) * head_dim_qk * element_size(dtype);
}

// Operations in float64 of an angle, and the bytes that are moved for it. These are the bytes of two
// channels of q and of k in kRotaryHeads heads.
inline constexpr int kRotaryAngleOperations = 17;
constexpr int64_t rotary_angle_bytes(DType dtype) {
  return kRotaryHeads * rotary_memory_bytes(dtype, 2);
}

static_assert(rotary_memory_bytes(DType::kBFloat16, 256) == 2048);
static_assert(rotary_angle_bytes(DType::kBFloat16) == 128);

}  // namespace retnet::kernels::cuda
