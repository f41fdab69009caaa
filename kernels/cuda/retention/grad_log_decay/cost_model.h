// SPDX-License-Identifier: Apache-2.0
//
// What a chunk of the log_decay gradient kernel costs, by formula. Figures follow from a tile alone. They
// are those of one block and one full chunk if nothing else is said.
// tests/kernels/cuda/grad_log_decay_counts.cpp counts the same in the SIMT emulator, and
// tools/mma_report.py compares the two. This file is plain C++ for the host.
#pragma once

#include <array>

#include "kernels/cuda/retention/chunkwise/cost_model.h"
#include "kernels/cuda/retention/grad_log_decay/plan.h"

namespace retnet::kernels::cuda {

// In the formulas of this file, R is chunk / 16 (row tiles), D is Dk / 16, C is slice / 16, P is
// R (R + 1) / 2, the number of 16 x 16 tiles of token pairs on or below the diagonal, and W is the number of
// warps.

// Warp-wide mma of 16 x 8 x 16.
struct GradLogDecayMma {
  int states;  // of A and G: C 2 D R 2
  int update;  // of S and S': as many
  int pairs;   // of q k^T and grad_out v^T: P 2 (D + C)
  constexpr int total() const { return states + update + pairs; }
};
constexpr GradLogDecayMma grad_log_decay_mma(const GradLogDecayTile& tile) {
  const int rows = tile.chunk / 16, depth = tile.head_dim_qk / 16, columns = tile.slice / 16;
  return {columns * 2 * depth * rows * 2, columns * 2 * depth * rows * 2,
          rows * (rows + 1) / 2 * 2 * (depth + columns)};
}

// Passes of the 128 bytes that shared memory serves at once, without bank conflicts. An ldmatrix of
// four matrices takes 4.
struct GradLogDecayWavefronts {
  int q_and_k;         // 4 (2 C R D)
  int v_and_grad_out;  // 4 (2 W R)
  int pairs;           // 4 (P 2 (D + C))
  int copies;          // cp.async of q, k, v and grad_out: chunk 2 (Dk + slice) 2 / 128
  int weights;         // for v and grad_out 4 loads of 8 bytes a lane, by half warps: W R 2 4 2
  constexpr int ldmatrix() const { return q_and_k + v_and_grad_out + pairs; }
  constexpr int total() const { return ldmatrix() + copies + weights; }
};
constexpr GradLogDecayWavefronts grad_log_decay_wavefronts(const GradLogDecayTile& tile) {
  const int rows = tile.chunk / 16, depth = tile.head_dim_qk / 16, columns = tile.slice / 16;
  const int warps = tile.threads() / 32;
  return {2 * columns * rows * depth * 4, 2 * warps * rows * 4,
          rows * (rows + 1) / 2 * 2 * (depth + columns) * 4,
          tile.chunk * 2 * (tile.head_dim_qk + tile.slice) * 2 / 128, warps * rows * 2 * 4 * 2};
}

inline constexpr int kGradLogDecayBarriers = 1;

// What the source asks for in the code of a warp's main loop (chunkwise_intervals). It has the copies of all
// operands, the pairs of tokens with at most 64 columns of q k^T, since the loop over them turns, and A, G and
// the update for 16 tokens.
constexpr CodeInterval grad_log_decay_interval(const GradLogDecayTile& tile) {
  const int depth = tile.head_dim_qk / 16, own_depth = depth / tile.halves();
  const int columns = tile.slice / 16;
  const auto copies = [&](int n) { return tile.chunk * n / 8 / tile.threads() + 2; };
  const int pairs = (depth < 4 ? depth : 4) + (columns < 4 ? columns : 4);
  return {2 * pairs + 2 * (1 + own_depth), 2 * (copies(tile.head_dim_qk) + copies(tile.slice)), 0,
          2 * pairs + 2 * 4 * own_depth};
}

// Bytes of a token and head. In L2, every slice reads q and k, and one slice reads v and grad_out. In
// device memory, each operand counts once.
constexpr int64_t grad_log_decay_l2_bytes(const GradLogDecayTile& tile, int64_t head_dim_qk,
                                          int64_t head_dim_v) {
  const int64_t slices = (head_dim_v + tile.slice - 1) / tile.slice;
  return 2 * (2 * head_dim_qk * slices + 2 * head_dim_v);
}
constexpr int64_t grad_log_decay_memory_bytes(int64_t head_dim_qk, int64_t head_dim_v) {
  return 2 * (2 * head_dim_qk + 2 * head_dim_v);
}

// The number of turns, of all warps together, of each loop with mma in the loop over chunks, in the order of
// the code:
// - over tiles of token pairs: P
// - inside that, over 64 columns of q k^T at a time: P D / 4, or 0 if Dk <= 64, because there is no loop
// - over the row tiles of sum_states: W R
// - over the row tiles of update_states: W R
constexpr std::array<int, 4> grad_log_decay_turns(const GradLogDecayTile& tile) {
  const int rows = tile.chunk / 16, depth = tile.head_dim_qk / 16, warps = tile.threads() / 32;
  const int pairs = rows * (rows + 1) / 2;
  return {pairs, depth > 4 ? pairs * depth / 4 : 0, warps * rows, warps * rows};
}

// Instructions of all warps, besides the mma, that the source asks for. In those loops each counts as often
// as its loop turns, and elsewhere as it stands in the code. A branch that is not taken counts, and the
// padding of ptxas does not.
constexpr int grad_log_decay_others(const GradLogDecayTile& tile) {
  const int warps = tile.threads() / 32;
  const auto [tiles, depth_turns, states_turns, update_turns] = grad_log_decay_turns(tile);
  const int loads = grad_log_decay_wavefronts(tile).ldmatrix() / 4;
  const int copies = grad_log_decay_wavefronts(tile).copies / 4 * 6;  // of 16 bytes a lane
  const int states = grad_log_decay_mma(tile).states * 4;  // products with S and S', summed
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
// The most instructions besides an mma that the compiled main loop may have. It is 7 for the tile of the
// goals (6.1 by the sum above), and as much above the sum for all others. That is more than the 4 of the
// chunkwise kernel, because each mma of A or G comes with 4 products of its results with the states, and
// two states decay and take two sets of weights.
constexpr double grad_log_decay_max_others_per_mma(const GradLogDecayTile& tile) {
  const auto per_mma = [](const GradLogDecayTile& t) {
    return static_cast<double>(grad_log_decay_others(t)) / grad_log_decay_mma(t).total();
  };
  return 7 * per_mma(tile) / per_mma(kGradLogDecayTiles[2]);
}

// The goals are what the model gives, rounded up. Shared memory bounds both. The 256 blocks take two turns
// on the 132 multiprocessors of an H100, and three on the 108 of an A100.
inline constexpr ChunkwiseGoal kGradLogDecayGoals[] = {
    {"H100", DType::kBFloat16, 256, 512, 32, 8192, 2.9},
    {"A100", DType::kBFloat16, 256, 512, 32, 8192, 5.4},
};

// By hand, for 256 x 64 x 64: 4 row tiles, 16 times 16 of Dk, 4 columns of warps, of two halves.
static_assert(grad_log_decay_mma(kGradLogDecayTiles[2]).total() == 1024 + 1024 + 400);
static_assert(grad_log_decay_wavefronts(kGradLogDecayTiles[2]).total() ==
              2048 + 256 + 1600 + 640 + 512);
static_assert(grad_log_decay_turns(kGradLogDecayTiles[2]) == std::array<int, 4>{10, 40, 32, 32});
static_assert(grad_log_decay_l2_bytes(kGradLogDecayTiles[2], 256, 512) == 10240);

}  // namespace retnet::kernels::cuda
