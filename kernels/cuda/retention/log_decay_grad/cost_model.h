// SPDX-License-Identifier: Apache-2.0
//
// What a chunk of the log_decay gradient kernel costs, by formula. Figures follow from a tile alone; they
// are of one block and one full chunk unless said otherwise. tests/kernels/cuda/log_decay_grad_counts.cpp counts
// the same in the SIMT emulator, and tools/mma_report.py compares the two. Plain C++, for the host.
#pragma once

#include <array>

#include "kernels/cuda/retention/chunkwise/cost_model.h"
#include "kernels/cuda/retention/log_decay_grad/plan.h"

namespace retnet::kernels::cuda {

// Warp-wide mma of 16 x 8 x 16.
struct LogDecayGradMma {
  int states;  // A and G: two for each 16 columns of Dv by 8 rows of Dk by 16 tokens
  int update;  // of S and S': likewise
  // q k^T and grad_out v^T: two for each 16 x 16 tokens on or below the diagonal by 16 columns
  int pairs;
  constexpr int total() const { return states + update + pairs; }
};
constexpr LogDecayGradMma log_decay_grad_mma(const LogDecayGradTile& tile) {
  const int rows = tile.chunk / 16, depth = tile.head_dim_qk / 16, columns = tile.slice / 16;
  return {columns * 2 * depth * rows * 2, columns * 2 * depth * rows * 2,
          rows * (rows + 1) / 2 * 2 * (depth + columns)};
}

// Passes of the 128 bytes that shared memory serves at once, without bank conflicts. An ldmatrix of
// four matrices takes 4.
struct LogDecayGradWavefronts {
  int q_and_k;         // for each 16 columns of Dv all 16 x 16 tiles
  int v_and_grad_out;  // for each warp all row tiles
  int pairs;   // per 16 x 16 tokens on or below the diagonal, both operands of both products
  int copies;  // cp.async: chunk rows of q, k, v and grad_out
  int weights;  // per warp and row tile 4 loads of 8 bytes a lane, by half warps, for v and grad_out each
  constexpr int ldmatrix() const { return q_and_k + v_and_grad_out + pairs; }
  constexpr int total() const { return ldmatrix() + copies + weights; }
};
constexpr LogDecayGradWavefronts log_decay_grad_wavefronts(const LogDecayGradTile& tile) {
  const int rows = tile.chunk / 16, depth = tile.head_dim_qk / 16, columns = tile.slice / 16;
  const int warps = tile.threads() / 32;
  return {2 * columns * rows * depth * 4, 2 * warps * rows * 4,
          rows * (rows + 1) / 2 * 2 * (depth + columns) * 4,
          tile.chunk * 2 * (tile.head_dim_qk + tile.slice) * 2 / 128, warps * rows * 2 * 4 * 2};
}

inline constexpr int kLogDecayGradBarriers = 1;

// What the source asks for in the code of the main loop, of a warp (chunkwise_intervals): copies of all
// operands; of the pairs at most 64 columns of q k^T, since its loop over them turns; A and G, and the update,
// of 16 tokens.
constexpr CodeInterval log_decay_grad_interval(const LogDecayGradTile& tile) {
  const int depth = tile.head_dim_qk / 16, own_depth = depth / tile.halves();
  const int columns = tile.slice / 16;
  const auto copies = [&](int n) { return tile.chunk * n / 8 / tile.threads() + 2; };
  const int pairs = (depth < 4 ? depth : 4) + (columns < 4 ? columns : 4);
  return {2 * pairs + 2 * (1 + own_depth), 2 * (copies(tile.head_dim_qk) + copies(tile.slice)), 0,
          2 * pairs + 2 * 4 * own_depth};
}

// Bytes of a token and head. L2: every slice reads q and k; one slice reads v and grad_out. Device memory:
// each operand once.
constexpr int64_t log_decay_grad_l2_bytes(const LogDecayGradTile& tile, int64_t head_dim_qk,
                                          int64_t head_dim_v) {
  const int64_t slices = (head_dim_v + tile.slice - 1) / tile.slice;
  return 2 * (2 * head_dim_qk * slices + 2 * head_dim_v);
}
constexpr int64_t log_decay_grad_memory_bytes(int64_t head_dim_qk, int64_t head_dim_v) {
  return 2 * (2 * head_dim_qk + 2 * head_dim_v);
}

// How often the loops with mma in the loop over chunks turn, all warps together, in the order of the code:
// over 16 x 16 tiles of token pairs; inside it, over 64 columns of q k^T at a time (0: there are no more,
// and no loop); over the row tiles of sum_states, and of update_states.
constexpr std::array<int, 4> log_decay_grad_turns(const LogDecayGradTile& tile) {
  const int rows = tile.chunk / 16, depth = tile.head_dim_qk / 16, warps = tile.threads() / 32;
  const int pairs = rows * (rows + 1) / 2;
  return {pairs, depth > 4 ? pairs * depth / 4 : 0, warps * rows, warps * rows};
}

// Instructions of all warps, besides the mma, that the source asks for. In those loops each counts as often
// as its loop turns, and elsewhere as it stands in the code: a branch that is not taken counts, and what
// ptxas pads the code with does not.
constexpr int log_decay_grad_others(const LogDecayGradTile& tile) {
  const int warps = tile.threads() / 32;
  const auto [tiles, depth_turns, states_turns, update_turns] = log_decay_grad_turns(tile);
  const int loads = log_decay_grad_wavefronts(tile).ldmatrix() / 4;
  const int copies = log_decay_grad_wavefronts(tile).copies / 4 * 6;  // of 16 bytes a lane
  const int states = log_decay_grad_mma(tile).states * 4;  // products with S and S', summed
  const int decay = warps * tile.head_dim_qk / 2 / tile.halves() * 3;  // of S, of both in S', of S'
  // Unpacking, products with either weight, packing, loads of the weights; the loop.
  const int fragments = (states_turns + update_turns) * (8 + 16 + 8 + 4 + 11);
  // Of 8 elements distance, power (2), age, both products, mask, sum; addresses of four operands, the
  // search for the tile; the loop inside.
  const int pairs = tiles * (8 * 8 + 4 * 10 + 10) + depth_turns * 12;
  // Addresses of four arrays and the code of four 8-byte copies, 30 each; expm1; tests, barrier.
  const int loop = warps * (4 * 30 + 4 * 30 + 30 + 60);
  return loads + copies + states + decay + fragments + pairs + loop;
}
// The most that the compiled main loop may have to an mma: 7 for the goals' tile (6.1 by the sum above), and
// as much above the sum for all others. That is more than the chunkwise kernel's 4, since each mma of A or G
// comes with 4 products of its results with the states, and two states decay and take two sets of weights.
constexpr double log_decay_grad_max_others_per_mma(const LogDecayGradTile& tile) {
  const auto per_mma = [](const LogDecayGradTile& t) {
    return static_cast<double>(log_decay_grad_others(t)) / log_decay_grad_mma(t).total();
  };
  return 7 * per_mma(tile) / per_mma(kLogDecayGradTiles[2]);
}

// What the model gives, rounded up. Shared memory bounds both. The 256 blocks are two turns on the 132
// multiprocessors of an H100, and three on the 108 of an A100.
inline constexpr ChunkwiseGoal kLogDecayGradGoals[] = {
    {"H100", DType::kBFloat16, 256, 512, 32, 8192, 2.9},
    {"A100", DType::kBFloat16, 256, 512, 32, 8192, 5.4},
};

// By hand, for 256 x 64 x 64: 4 row tiles, 16 times 16 of Dk, 4 columns of warps, of two halves.
static_assert(log_decay_grad_mma(kLogDecayGradTiles[2]).total() == 1024 + 1024 + 400);
static_assert(log_decay_grad_wavefronts(kLogDecayGradTiles[2]).total() ==
              2048 + 256 + 1600 + 640 + 512);
static_assert(log_decay_grad_turns(kLogDecayGradTiles[2]) == std::array<int, 4>{10, 40, 32, 32});
static_assert(log_decay_grad_l2_bytes(kLogDecayGradTiles[2], 256, 512) == 10240);

}  // namespace retnet::kernels::cuda
