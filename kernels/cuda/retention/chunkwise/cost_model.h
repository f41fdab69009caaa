// SPDX-License-Identifier: Apache-2.0
//
// What a chunk of the chunkwise retention kernel costs, by formula. Figures follow from a tile alone. They
// are those of one block and one full chunk if nothing else is said. tests/kernels/cuda/kernel_counts.cpp
// counts the same in the SIMT emulator, and tools/kernel_report.py compares the two. This file is plain C++
// for the host.
#pragma once

#include <array>

#include "kernels/cuda/device.h"
#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {

// In the formulas of this file, R is chunk / 16 (row tiles), D is Dk / 16, H is the number of halves, and W
// is the number of warps of a half.

// Warp-wide mma of 16 x 8 x 16, by product.
struct ChunkwiseMma {
  int q_state;   // q S: W R 2 D
  int q_k;       // q k^T: R (chunk / 8) D
  int scores_v;  // scores v: W R (R + 1), 2 for each 16 x 16 tile on or below the diagonal
  int k_v;       // k^T v: W R 2 D
  constexpr int total() const { return q_state + q_k + scores_v + k_v; }
};
constexpr ChunkwiseMma chunkwise_mma(const ChunkwiseTile& tile) {
  const int rows = tile.chunk / 16, depth = tile.head_dim_qk / 16;
  const int warps = tile.threads() / 32 / tile.halves();  // of a half, which has half of the depth
  return {warps * rows * 2 * depth, rows * (tile.chunk / 8) * depth, warps * rows * (rows + 1),
          warps * rows * 2 * depth};
}

// Passes of the 128 bytes that shared memory serves at once, without bank conflicts. An ldmatrix of
// four matrices takes 4: one for each 8 x 8 matrix of 128 bytes. The scores have chunk / 8 columns of 8
// tokens of k.
struct ChunkwiseWavefronts {
  int q;             // 4 W R D; if W > chunk / 8, warps share a column: 4 R (chunk / 8) D more
  int k_scores;      // of k for the scores: 4 W max(1, chunk / 8 / W) D / 2
  int v;             // 4 W H R
  int scores;        // 4 W R (R + 1) / 2
  int k_update;      // of k for the update of the state: 4 W R D
  int copies;        // cp.async of q, k and v: chunk (2 Dk + slice) 2 / 128
  int score_stores;  // 2 R (R + 1): 2 for each 16 x 8 tile on or below the diagonal
  int weights;       // 4 W H R: 2 loads of 8 bytes a lane, by half warps
  int sums;          // of outputs and scores, sent or loaded: (H - 1) chunk (slice + chunk) 4 / 128
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

// How many instructions the code of the main loop has between two barriers.
struct CodeInterval {
  int ldmatrix, cp_async, stores, mma;
};
// The cp.async for an operand of `columns` are a thread's copies of 16 bytes, and the two in the loop over
// copies of 8 bytes.
constexpr int chunkwise_copies(const ChunkwiseTile& tile, int columns) {
  return tile.chunk * columns / 8 / tile.threads() + 2;
}
// What the source asks for in the code of a warp. The first interval has the copies of k and v, q S and
// q k^T, and the last one has the copies of q, scores v and k^T v. The stores of the scores are in the first
// one. With halves they have one of their own, and the first one has the stores that halves send each other.
// The first chunkwise_barriers(tile) elements count.
constexpr std::array<CodeInterval, 3> chunkwise_intervals(const ChunkwiseTile& tile) {
  const int rows = tile.chunk / 16, halves = tile.halves(), depth = tile.head_dim_qk / 16 / halves;
  const int warps = tile.threads() / 32 / halves, k_tiles = tile.chunk / 8;
  const int columns = k_tiles > warps ? k_tiles / warps : 1;  // columns of scores
  const int groups = warps > k_tiles ? warps / k_tiles : 1, score_rows = rows / groups;
  const int own_rows = rows / halves, again = groups > 1 ? score_rows : 0;
  // With halves, a warp skips pairs of row tiles above the diagonal at run time.
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

// Bytes of a token and head. In L2, every slice reads q and k, and one slice reads v and writes out. In
// device memory, each operand counts once.
constexpr int64_t chunkwise_l2_bytes(const ChunkwiseTile& tile, int64_t head_dim_qk,
                                     int64_t head_dim_v) {
  const int64_t slices = (head_dim_v + tile.slice - 1) / tile.slice;
  return 2 * (2 * head_dim_qk * slices + 2 * head_dim_v);
}
constexpr int64_t chunkwise_memory_bytes(int64_t head_dim_qk, int64_t head_dim_v) {
  return 2 * (2 * head_dim_qk + 2 * head_dim_v);
}

// Instructions of a warp and chunk, besides its mma, that the source asks for. They count as they stand in
// the code. A branch that is not taken counts, and the padding of ptxas does not.
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
// The most instructions besides an mma that the compiled main loop may have. It is 4 for the tile of the
// goals in bfloat16 (3.3 by the sum above), and as much above the sum for all others. Small tiles have fewer
// mma for the same outputs.
constexpr double chunkwise_max_others_per_mma(const ChunkwiseTile& tile, DType dtype) {
  return 4 * chunkwise_others_per_mma(tile, dtype) /
         chunkwise_others_per_mma(kChunkwiseTiles[3], DType::kBFloat16);
}

// A goal is a number of nanoseconds per token and head that the model must not exceed.
struct ChunkwiseGoal {
  const char* device;
  DType dtype;
  int64_t head_dim_qk, head_dim_v;
  int64_t heads;  // B H
  int64_t tokens;
  double ns;
};
// By the formula of C = 64 (623 kFLOP), the first goal is 389 TFLOP/s on an H100 and 125 on an A100, where
// 128 blocks take two turns on 108 multiprocessors. The goals with Dk = 512 are those of the passes of
// grad_q and grad_k. The pass of grad_v costs as much as the forward pass, so all three take 5.5 ns on an
// H100.
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
// Of a warp: 16 times 8 and 4 mma in the first interval, 10 times 2 and 64 times 2 in the second one.
static_assert(chunkwise_intervals(kChunkwiseTiles[3])[0].mma == 192 &&
              chunkwise_intervals(kChunkwiseTiles[3])[1].mma == 148);
static_assert(chunkwise_intervals(kChunkwiseTiles[5])[1].stores == 2 &&
              chunkwise_intervals(kChunkwiseTiles[5])[2].ldmatrix == 2 + 2 + 32);
static_assert(chunkwise_l2_bytes(kChunkwiseTiles[3], 256, 512) == 6144);
static_assert(chunkwise_memory_bytes(256, 512) == 3072);

}  // namespace retnet::kernels::cuda
