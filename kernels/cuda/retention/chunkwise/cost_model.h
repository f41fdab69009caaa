// SPDX-License-Identifier: Apache-2.0
//
// What a chunk of the chunkwise retention kernel costs, by formula. Figures follow from a tile alone; they
// are of one block and one full chunk unless said otherwise. tests/kernels/cuda/kernel_counts.cpp counts the
// same in the SIMT emulator, and tools/kernel_report.py compares the two. Plain C++, for the host.
#pragma once

#include <array>

#include "kernels/cuda/device.h"
#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {

// Warp-wide mma of 16 x 8 x 16, by product.
struct ChunkwiseMma {
  int q_state;   // q S: per warp all row tiles by 2 column tiles by Dk / 16
  int q_k;       // q k^T: all row tiles by chunk / 8 by Dk / 16, shared by the warps
  int scores_v;  // scores v: per warp 2 of each 16 x 16 tile on or below the diagonal
  int k_v;       // k^T v: per warp Dk / 8 by all row tiles
  constexpr int total() const { return q_state + q_k + scores_v + k_v; }
};
constexpr ChunkwiseMma chunkwise_mma(const ChunkwiseTile& tile) {
  const int rows = tile.chunk / 16, depth = tile.head_dim_qk / 16;
  const int warps = tile.threads() / 32 / tile.halves();  // of a half, which has half of the depth
  return {warps * rows * 2 * depth, rows * (tile.chunk / 8) * depth, warps * rows * (rows + 1),
          warps * rows * 2 * depth};
}

// Passes of the 128 bytes that shared memory serves at once, without bank conflicts. An ldmatrix of
// four matrices takes 4: one for each 8 x 8 matrix of 128 bytes.
struct ChunkwiseWavefronts {
  int q;  // ldmatrix: per warp all row tiles by Dk / 16, and again those of its scores if warps
          // share a column of them
  int k_scores;      // of k for the scores: per warp each of its columns of 8 tokens by Dk / 32
  int v;             // per warp all row tiles, 16 columns
  int scores;        // per warp each 16 x 16 tile on or below the diagonal
  int k_update;      // of k for the update of the state: per warp all row tiles by Dk / 16
  int copies;        // cp.async: chunk rows of q, k and v
  int score_stores;  // 2 of each 16 x 8 tile on or below the diagonal: 8 rows of 16 bytes
  int weights;       // per warp all row tiles, 2 loads of 8 bytes a lane, by half warps
  int sums;          // with halves: of outputs and scores each sends half, and loads as much
  constexpr int ldmatrix() const { return q + k_scores + v + scores + k_update; }
  constexpr int total() const { return ldmatrix() + copies + score_stores + weights + 2 * sums; }
};
constexpr ChunkwiseWavefronts chunkwise_wavefronts(const ChunkwiseTile& tile) {
  const int rows = tile.chunk / 16, depth = tile.head_dim_qk / 16, halves = tile.halves();
  const int warps = tile.threads() / 32 / halves;  // of a half, which has half of the depth
  const int k_tiles = tile.chunk / 8, columns = k_tiles > warps ? k_tiles / warps : 1;
  const int again = warps > k_tiles ? rows * k_tiles / warps : 0;
  return {warps * (rows + again) * depth * 4,
          warps * columns * depth / 2 * 4,
          warps * halves * rows * 4,
          warps * rows * (rows + 1) / 2 * 4,
          warps * rows * depth * 4,
          tile.chunk * (2 * tile.head_dim_qk + tile.slice) * 2 / 128,
          rows * (rows + 1) * 2,
          warps * halves * rows * 2 * 2,
          (halves - 1) * tile.chunk * (tile.slice + tile.chunk) * 4 / 128};
}

constexpr int chunkwise_barriers(const ChunkwiseTile& tile) { return 1 + tile.halves(); }

// Instructions in the code of the main loop between two barriers.
struct CodeInterval {
  int ldmatrix, cp_async, stores, mma;
};
// cp.async of an operand of `columns`: a thread's copies of 16 bytes, and the two of the loop over 8 bytes.
constexpr int chunkwise_copies(const ChunkwiseTile& tile, int columns) {
  return tile.chunk * columns / 8 / tile.threads() + 2;
}
// What the source asks for, of a warp: copies of k and v, q S, q k^T and with halves the stores of their
// sums; the stores of the scores, behind a barrier of their own with halves; copies of q, scores v, k^T v.
// There are chunkwise_barriers(tile) of these.
constexpr std::array<CodeInterval, 3> chunkwise_intervals(const ChunkwiseTile& tile) {
  const int rows = tile.chunk / 16, halves = tile.halves(), depth = tile.head_dim_qk / 16 / halves;
  const int warps = tile.threads() / 32 / halves, k_tiles = tile.chunk / 8;
  const int columns = k_tiles > warps ? k_tiles / warps : 1;  // of scores
  const int groups = warps > k_tiles ? warps / k_tiles : 1, score_rows = rows / groups;
  const int own_rows = rows / halves, again = groups > 1 ? score_rows : 0;
  // Pairs of row tiles, which with halves a warp skips at run time if they are above the diagonal.
  const int pairs = halves > 1 ? own_rows * rows : rows * (rows + 1) / 2;
  const int stores = 2 * columns * score_rows / halves;
  CodeInterval first{depth * (rows + again) + columns * depth / 2,
                     chunkwise_copies(tile, tile.head_dim_qk) + chunkwise_copies(tile, tile.slice),
                     0, depth * (2 * rows + score_rows * columns)};
  const CodeInterval last{rows + pairs + rows * depth, chunkwise_copies(tile, tile.head_dim_qk), 0,
                          2 * pairs + 2 * rows * depth};
  if (halves == 1) {
    first.stores = stores;
    return {first, last, {}};
  }
  first.stores = own_rows * (2 + columns);
  return {first, {0, 0, stores, 0}, last};
}

// Bytes of a token and head. L2: every slice reads q and k; one slice reads v and writes out. Device
// memory: each operand once.
constexpr int64_t chunkwise_l2_bytes(const ChunkwiseTile& tile, int64_t head_dim_qk,
                                     int64_t head_dim_v) {
  const int64_t slices = (head_dim_v + tile.slice - 1) / tile.slice;
  return 2 * (2 * head_dim_qk * slices + 2 * head_dim_v);
}
constexpr int64_t chunkwise_memory_bytes(int64_t head_dim_qk, int64_t head_dim_v) {
  return 2 * (2 * head_dim_qk + 2 * head_dim_v);
}

// Instructions of a warp and chunk, besides its mma, that the source asks for. They count as they stand in
// the code: a branch that is not taken counts, and what ptxas pads the code with does not.
constexpr int chunkwise_others(const ChunkwiseTile& tile, DType dtype) {
  const int warps = tile.threads() / 32, rows = tile.chunk / 16;
  const int score_tiles = rows * (tile.chunk / 8) / warps;
  const int copies = tile.chunk * (2 * tile.head_dim_qk + tile.slice) / 8 / tile.threads();
  const int loads = chunkwise_wavefronts(tile).ldmatrix() / 4 / warps;
  const int rows_qk = tile.head_dim_qk / tile.halves();  // of a warp
  const int state = rows_qk / 2 + rows_qk / 4;           // decay; packing as an operand
  const int saturation = dtype == DType::kFloat16 ? rows_qk / 2 : 0;  // 2 of a pair
  const int outputs = rows * (8 + 2);                                 // products; powers
  // Selection of what is sent and of what is kept, sum; a store and a load of 16 bytes.
  const int sums = (tile.halves() - 1) * (rows * 8 + score_tiles * 4) * 3 / 2 +
                   (tile.halves() - 1) * (rows * 2 + score_tiles);
  // Distance, power (2), scale, product, mask (2); packing, stores, the test for the diagonal.
  const int scores = score_tiles * (4 * 7 + 2 + 2 + 4);
  const int v = rows * (8 + 8 + 4 + 2);  // unpacking, product, packing; load of the weights
  const int stores = rows * 2 * 10;      // packing, exchange, select, address, store
  // Addresses of four arrays and the code of three 8-byte copies, 30 each; expm1; tests, barriers.
  const int loop = 4 * 30 + 3 * 30 + 30 + 60;
  return loads + state + saturation + outputs + sums + scores + v + stores + copies * 6 + loop;
}
constexpr double chunkwise_others_per_mma(const ChunkwiseTile& tile, DType dtype) {
  return static_cast<double>(chunkwise_others(tile, dtype)) * (tile.threads() / 32) /
         chunkwise_mma(tile).total();
}
// The most that the compiled main loop may have: 4 for the goals' tile in bf16 (3.3 by the sum above),
// and as much above the sum for all others. Small tiles have fewer mma for the same outputs.
constexpr double chunkwise_max_others_per_mma(const ChunkwiseTile& tile, DType dtype) {
  return 4 * chunkwise_others_per_mma(tile, dtype) /
         chunkwise_others_per_mma(kChunkwiseTiles[3], DType::kBFloat16);
}

// A goal: nanoseconds per token and head that the model must not exceed.
struct ChunkwiseGoal {
  const char* device;
  DType dtype;
  int64_t head_dim_qk, head_dim_v;
  int64_t heads;  // B H
  int64_t tokens;
  double ns;
};
// H100: 389 TFLOP/s at the formula of C = 64 (623 kFLOP), inside the 350..430 expected of a first
// version. A100: 125 of 100..170; 128 blocks on 108 multiprocessors are two turns. Dk = 512 are the
// passes of grad_q and of grad_k. The pass of grad_v costs what the forward pass does: H100 5.5 for all
// three.
inline constexpr ChunkwiseGoal kChunkwiseGoals[] = {
    {"H100", DType::kBFloat16, 256, 512, 32, 8192, 1.6},
    {"A100", DType::kBFloat16, 256, 512, 32, 8192, 5.0},
    {"H100", DType::kBFloat16, 512, 256, 32, 8192, 1.95},
    {"A100", DType::kBFloat16, 512, 256, 32, 8192, 5.0},
};

// By hand, for 256 x 128 x 64: 8 warps, 4 row tiles, 16 times 16 of Dk.
static_assert(chunkwise_mma(kChunkwiseTiles[3]).total() == 1024 + 512 + 160 + 1024);
static_assert(chunkwise_wavefronts(kChunkwiseTiles[3]).total() ==
              2048 + 256 + 128 + 320 + 2048 + 640 + 40 + 128);
// For 512 x 64 x 32: two halves of 4 warps, 2 row tiles, 32 times 16 of Dk.
static_assert(chunkwise_mma(kChunkwiseTiles[5]).total() == 512 + 256 + 24 + 512);
static_assert(chunkwise_wavefronts(kChunkwiseTiles[5]).total() ==
              1024 + 256 + 64 + 48 + 1024 + 544 + 12 + 64 + 2 * 96);
static_assert(chunkwise_l2_bytes(kChunkwiseTiles[3], 256, 512) == 6144);
static_assert(chunkwise_memory_bytes(256, 512) == 3072);

}  // namespace retnet::kernels::cuda
