// SPDX-License-Identifier: Apache-2.0
//
// What a chunk of the kernel of log_decay's gradient costs, by formula: from a tile alone, of one block and
// one full chunk unless said otherwise. tests/kernels/cuda/log_decay_counts.cpp counts the same in the emulator
// and tools/mma_report.py holds the two together. Plain C++, for the host.
#pragma once

#include <array>

#include "kernels/cuda/retention/chunkwise/cost_model.h"
#include "kernels/cuda/retention/log_decay_grad/plan.h"

namespace retnet::kernels::cuda {

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

// How often the loops with mma in the loop over chunks turn, all warps together, in the order of the code:
// over 16 x 16 tiles of token pairs; in it, over four steps of q k^T at a time (0: there are no more, and
// no loop); over the row tiles of sum_states, and of add_values.
constexpr std::array<int, 4> log_decay_turns(const LogDecayTile& tile) {
  const int rows = tile.chunk / 16, steps = tile.inner / 16, warps = tile.threads() / 32;
  const int pairs = rows * (rows + 1) / 2;
  return {pairs, steps > 4 ? pairs * steps / 4 : 0, warps * rows, warps * rows};
}

// Instructions beside the mma that the source asks for, of all warps, each as often as its loop turns
// (else as it stands in the code: a branch not taken counts; what ptxas pads the code with does not).
constexpr int log_decay_others(const LogDecayTile& tile) {
  const int warps = tile.threads() / 32;
  const auto [tiles, inner_turns, states_turns, update_turns] = log_decay_turns(tile);
  const int loads = log_decay_wavefronts(tile).ldmatrix() / 4;
  const int copies = log_decay_wavefronts(tile).copies / 4 * 6;  // of 16 bytes a lane
  const int states = log_decay_mma(tile).states * 4;             // products with S and S', summed
  const int decay = warps * tile.inner / 2 / tile.halves() * 3;  // of S, of both in S', of S'
  // Unpacking, products with either weight, packing, loads of the weights; the loop.
  const int fragments = (states_turns + update_turns) * (8 + 16 + 8 + 4 + 11);
  // Of 8 elements distance, power (2), age, both products, mask, sum; addresses of four operands, the
  // search for the tile; the inner loop.
  const int pairs = tiles * (8 * 8 + 4 * 10 + 10) + inner_turns * 12;
  // Addresses of four arrays and the code of four 8-byte copies, 30 each; expm1; tests, barrier.
  const int loop = warps * (4 * 30 + 4 * 30 + 30 + 60);
  return loads + copies + states + decay + fragments + pairs + loop;
}
// At most this many to an mma in the compiled main loop: 7 for the goals' tile (6.1 by the sum above) and
// as much above the sum for all others. More than the chunkwise kernel's 4, since each mma of A or G comes
// with 4 products of its results with the states, and two states decay and take two sets of weights.
constexpr double log_decay_max_others_per_mma(const LogDecayTile& tile) {
  const auto per_mma = [](const LogDecayTile& t) {
    return static_cast<double>(log_decay_others(t)) / log_decay_mma(t).total();
  };
  return 7 * per_mma(tile) / per_mma(kLogDecayTiles[2]);
}

// What the model gives, rounded up: shared memory bounds both. The 256 blocks are two turns on an H100's
// 132 multiprocessors, three on an A100's 108.
inline constexpr ChunkwiseGoal kLogDecayGoals[] = {
    {"H100", DType::kBFloat16, 256, 512, 32, 8192, 2.9},
    {"A100", DType::kBFloat16, 256, 512, 32, 8192, 5.4},
};

// By hand, for 256 x 64 x 64: 4 row tiles, 16 steps of I, 4 columns of warps, of two halves.
static_assert(log_decay_mma(kLogDecayTiles[2]).total() == 1024 + 1024 + 400);
static_assert(log_decay_wavefronts(kLogDecayTiles[2]).total() == 2048 + 256 + 1600 + 640 + 512);
static_assert(log_decay_turns(kLogDecayTiles[2]) == std::array<int, 4>{10, 40, 32, 32});
static_assert(log_decay_l2_bytes(kLogDecayTiles[2], 256, 512) == 10240);

}  // namespace retnet::kernels::cuda
