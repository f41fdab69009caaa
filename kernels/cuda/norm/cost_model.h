// SPDX-License-Identifier: Apache-2.0
//
// What a row of the gated group norm costs, by formula. tests/kernels/cuda/kernel_counts.cpp counts the
// same in the SIMT emulator, and tools/kernel_report.py compares the two. This file is plain C++ for the
// host.
#pragma once

#include "kernels/cuda/norm/plan.h"

namespace retnet::kernels::cuda {

// Bytes of a row of Dv with a gate, without weight, bias and the workspace. The forward moves x, gate and
// out. The backward moves grad_out, x and gate, then grad_x and grad_gate. All of them are bytes of device
// memory.
struct GatedGroupNormBytes {
  int64_t loaded;
  int64_t stored;
  constexpr int64_t memory() const { return loaded + stored; }
};
constexpr GatedGroupNormBytes gated_group_norm_bytes(bool backward, DType dtype,
                                                     int64_t head_dim_v) {
  const int64_t array = head_dim_v * element_size(dtype);
  return backward ? GatedGroupNormBytes{3 * array, 2 * array}
                  : GatedGroupNormBytes{2 * array, array};
}

// Rows that a multiprocessor works on at a time.
constexpr int gated_group_norm_rows(bool backward, DType dtype, int64_t head_dim_v) {
  const int threads = kGatedGroupNormTiles[gated_group_norm_tile(head_dim_v)].threads_per_row;
  const int blocks =
      backward ? gated_group_norm_backward_occupancy(dtype) : kGatedGroupNormForwardOccupancy;
  return blocks * kGatedGroupNormBlock / threads;
}

// Bytes of the workspace of the backward, which is written and read once, for each byte that the rows move.
// There are `tokens` rows of each of `heads`, and both grad_weight and grad_bias are computed.
inline double gated_group_norm_workspace_share(const GatedGroupNormInputs& p) {
  const auto blocks = static_cast<double>(gated_group_norm_blocks_per_head(p));
  const double workspace = 2 * 2 * blocks * static_cast<double>(p.head_dim_v) * sizeof(float);
  const int64_t row = gated_group_norm_bytes(true, p.dtype, p.head_dim_v).memory();
  return workspace / (static_cast<double>(p.tokens) * static_cast<double>(row));
}

// By hand, for Dv = 512 in bfloat16: 32 threads a row.
static_assert(gated_group_norm_bytes(false, DType::kBFloat16, 512).memory() == 3072);
static_assert(gated_group_norm_bytes(true, DType::kBFloat16, 512).memory() == 5120);
static_assert(gated_group_norm_rows(false, DType::kBFloat16, 512) == 32);

}  // namespace retnet::kernels::cuda
