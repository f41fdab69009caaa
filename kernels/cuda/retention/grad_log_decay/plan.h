// SPDX-License-Identifier: Apache-2.0
//
// Parameters and tiles of the log_decay gradient kernel, and which calls it supports. This file is plain
// C++ and needs no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {

// The kernel reads grad_out and grad_final_state of `gradients` and writes grad_log_decay. It reads q, k,
// v, log_decay, cu_seqlens and the initial state of `forward`.
struct GradLogDecayParams {
  ChunkwiseParams forward;
  ChunkwiseGradients gradients;
};

// A block owns `slice` columns of the state S and of its derivative S', of one sequence and head. Each warp
// has 16 of them with all rows of head_dim_qk. Above 64 rows two warps share 16 columns, and each has a
// half of the rows. A thread then holds head_dim_qk / 2 / halves float32 numbers of each state.
struct GradLogDecayTile {
  int head_dim_qk;
  int slice;
  int chunk;

  constexpr int halves() const { return head_dim_qk > 64 ? 2 : 1; }
  constexpr int threads() const { return slice / 16 * 32 * halves(); }
  // There are two stages of q, k, v and grad_out, and six float32 weights of a token (store_weights).
  constexpr size_t shared_bytes() const {
    return static_cast<size_t>(chunk) * (2 * 2 * (2 * head_dim_qk + 2 * slice) + 6 * 4);
  }
};

// The plan takes the first that is wide enough and fits into the shared memory of the device. Slices have
// 64 columns, because two states of 128 would take all registers.
inline constexpr GradLogDecayTile kGradLogDecayTiles[] = {
    {64, 64, 64}, {128, 64, 64}, {256, 64, 64}, {256, 64, 32}};
inline constexpr int kGradLogDecayTileCount = sizeof(kGradLogDecayTiles) / sizeof(GradLogDecayTile);

namespace grad_log_decay_detail {

constexpr bool tiles_are_valid() {
  for (const auto& tile : kGradLogDecayTiles) {
    const int states = 2 * tile.head_dim_qk / 2 / tile.halves();  // registers of a thread
    const int rows_a_pass =
        tile.threads() * 8 / tile.head_dim_qk;  // of a copy, as load_tile needs it
    if (tile.head_dim_qk % (64 * tile.halves()) != 0 || tile.slice % 64 != 0 ||
        tile.chunk % 32 != 0 || states > 128 || rows_a_pass % 8 != 0 ||
        tile.chunk % rows_a_pass != 0 || tile.chunk % (tile.threads() * 8 / tile.slice) != 0 ||
        tile.shared_bytes() > kShared80) {
      return false;
    }
  }
  // There is a tile wherever the kernel runs.
  return kGradLogDecayTiles[1].shared_bytes() <= kShared86 &&
         kGradLogDecayTiles[3].shared_bytes() <= kShared86;
}
static_assert(tiles_are_valid());

}  // namespace grad_log_decay_detail

struct GradLogDecayPlan {
  const char* unsupported_reason = nullptr;  // null if the kernel supports the call
  int tile = -1;                             // index into kGradLogDecayTiles
  int64_t slices = 0;                        // of head_dim_v
};

// A pure function of the shape, the dtype and the device. The tile depends only on head_dim_qk,
// head_dim_v, dtype and device.
GradLogDecayPlan grad_log_decay_plan(const ChunkwiseParams& forward, const DeviceLimits& device);

// Whether the tokens of all four operands start and end at multiples of 16 bytes.
bool grad_log_decay_wide(const ChunkwiseParams& forward, const RetentionOperand& grad_out);

}  // namespace retnet::kernels::cuda
