// SPDX-License-Identifier: Apache-2.0
//
// What a chunk of the kernel of log_decay's gradient costs, by formula: from a tile alone, of one block and
// one full chunk unless said otherwise. tests/kernels/log_decay_emulated.cpp counts the same in the
// emulator. Plain C++, for the host.
#pragma once

#include "kernels/retention/log_decay_plan.h"

namespace retnet::kernels {

// Warp-wide mma of 16 x 8 x 16.
struct LogDecayMma {
  int states;  // A and G: two of each 16 columns of O by 8 rows of I by 16 tokens
  int update;  // of S and S': likewise
  int pairs;  // q k^T and dout v^T: two of each 16 x 16 tokens on or below the diagonal by 16 columns
  constexpr int total() const { return states + update + pairs; }
};
constexpr LogDecayMma log_decay_mma(const LogDecayTile& tile) {
  const int rows = tile.chunk / 16, steps = tile.inner / 16, columns = tile.slice / 16;
  return {columns * 2 * steps * rows * 2, columns * 2 * steps * rows * 2,
          rows * (rows + 1) / 2 * 2 * (steps + columns)};
}

// Passes of the 128 bytes that shared memory serves at once, without bank conflicts. An ldmatrix of
// four matrices takes 4.
struct LogDecayWavefronts {
  int inner;    // q and k, for each 16 columns of O all 16 x 16 tiles
  int columns;  // v and dout, for each warp all row tiles
  int pairs;    // per 16 x 16 tokens on or below the diagonal, both operands of both products
  int copies;   // cp.async: chunk rows of q, k, v and dout
  int weights;  // per warp and row tile, for v and for dout 4 loads of 8 bytes a lane, by half warps
  constexpr int ldmatrix() const { return inner + columns + pairs; }
  constexpr int total() const { return ldmatrix() + copies + weights; }
};
constexpr LogDecayWavefronts log_decay_wavefronts(const LogDecayTile& tile) {
  const int rows = tile.chunk / 16, steps = tile.inner / 16, columns = tile.slice / 16;
  const int warps = tile.threads() / 32;
  return {2 * columns * rows * steps * 4, 2 * warps * rows * 4,
          rows * (rows + 1) / 2 * 2 * (steps + columns) * 4,
          tile.chunk * 2 * (tile.inner + tile.slice) * 2 / 128, warps * rows * 2 * 4 * 2};
}

inline constexpr int kLogDecayBarriers = 1;

// Bytes of a token and head. L2: every slice reads q and k, one each of v and dout. Device memory: each
// operand once.
constexpr int64_t log_decay_l2_bytes(const LogDecayTile& tile, int64_t inner, int64_t outer) {
  return 2 * (2 * inner * ((outer + tile.slice - 1) / tile.slice) + 2 * outer);
}
constexpr int64_t log_decay_memory_bytes(int64_t inner, int64_t outer) {
  return 2 * (2 * inner + 2 * outer);
}

// By hand, for 256 x 64 x 64: 4 row tiles, 16 steps of I, 4 columns of warps, of two halves.
static_assert(log_decay_mma(kLogDecayTiles[2]).total() == 1024 + 1024 + 400);
static_assert(log_decay_wavefronts(kLogDecayTiles[2]).total() == 2048 + 256 + 1600 + 640 + 512);
static_assert(log_decay_l2_bytes(kLogDecayTiles[2], 256, 512) == 10240);

}  // namespace retnet::kernels
