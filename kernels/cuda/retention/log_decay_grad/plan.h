// SPDX-License-Identifier: Apache-2.0
//
// Tiles of the kernel that computes the gradient of log_decay, and which calls it takes. Plain C++: no
// CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {

// A block owns `slice` columns of the state S and of its derivative S', of one sequence and head: 16
// columns to a warp with all rows of I or, above 64, to two warps with a half each. Of each state a
// thread then holds inner / 2 / halves fp32 numbers.
struct LogDecayTile {
  int inner;
  int slice;
  int chunk;

  constexpr int halves() const { return inner > 64 ? 2 : 1; }
  constexpr int threads() const { return slice / 16 * 32 * halves(); }
  // Two stages of q, k, v and dout; six fp32 weights of a token (LogDecayBlock::store_weights).
  constexpr size_t shared_bytes() const {
    return static_cast<size_t>(chunk) * (2 * 2 * (2 * inner + 2 * slice) + 6 * 4);
  }
};

// The first that is wide enough and fits into the device's shared memory is taken. Slices are of 64
// columns: two states of 128 would take all registers.
inline constexpr LogDecayTile kLogDecayTiles[] = {
    {64, 64, 64}, {128, 64, 64}, {256, 64, 64}, {256, 64, 32}};
inline constexpr int kLogDecayTileCount = sizeof(kLogDecayTiles) / sizeof(LogDecayTile);

namespace log_decay_detail {

constexpr bool tiles_are_valid() {
  for (const auto& tile : kLogDecayTiles) {
    const int states = 2 * tile.inner / 2 / tile.halves();    // registers of a thread
    const int rows_a_step = tile.threads() * 8 / tile.inner;  // of a copy, as load_tile needs it
    if (tile.inner % (64 * tile.halves()) != 0 || tile.slice % 64 != 0 || tile.chunk % 32 != 0 ||
        states > 128 || rows_a_step % 8 != 0 || tile.chunk % rows_a_step != 0 ||
        tile.chunk % (tile.threads() * 8 / tile.slice) != 0 || tile.shared_bytes() > kShared80) {
      return false;
    }
  }
  // Wherever the kernel runs there is a tile.
  return kLogDecayTiles[1].shared_bytes() <= kShared86 &&
         kLogDecayTiles[3].shared_bytes() <= kShared86;
}
static_assert(tiles_are_valid());

}  // namespace log_decay_detail

struct LogDecayPlan {
  const char* refusal = nullptr;  // null, or why the kernel does not take the call
  int tile = -1;                  // index into kLogDecayTiles
  int64_t slices = 0;             // of O
};

// A pure function of the shape, the dtype and the device; the tile of (I, O, dtype, device) alone.
LogDecayPlan log_decay_plan(const ChunkwiseParams& forward, const DeviceLimits& device);

// Whether the rows of all four operands start and end at multiples of 16 bytes.
bool log_decay_wide(const ChunkwiseParams& forward, const RetentionOperand& grad_out);

}  // namespace retnet::kernels::cuda
