// SPDX-License-Identifier: Apache-2.0
//
// What a chunk of the chunkwise retention kernel costs, by formula: from a tile alone, of one block
// and one full chunk unless said otherwise. tests/kernels/cuda/kernel_counts.cpp counts the same in the
// emulator and tools/kernel_report.py holds the two together. Plain C++, for the host.
#pragma once

#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {

// Warp-wide mma of 16 x 8 x 16.
struct ChunkwiseMma {
  int readout;  // a S: per warp all row tiles by 2 column tiles by I / 16
  int scores;   // a b^T: all row tiles by chunk / 8 by I / 16, shared out among the warps
  int values;   // scores c: per warp 2 of each 16 x 16 step on or below the diagonal
  int update;   // b^T c: per warp I / 8 by all row tiles
  constexpr int total() const { return readout + scores + values + update; }
};
constexpr ChunkwiseMma chunkwise_mma(const ChunkwiseTile& tile) {
  const int rows = tile.chunk / 16, steps = tile.inner / 16;
  const int warps = tile.threads() / 32 / tile.halves();  // of a half, which has half of the steps
  return {warps * rows * 2 * steps, rows * (tile.chunk / 8) * steps, warps * rows * (rows + 1),
          warps * rows * 2 * steps};
}

// Passes of the 128 bytes that shared memory serves at once, without bank conflicts. An ldmatrix of
// four matrices takes 4: one to each 8 x 8 matrix of 128 bytes.
struct ChunkwiseWavefronts {
  int readout;  // ldmatrix: per warp all row tiles by I / 16, and again those of its scores where
                // warps share a column of keys
  int score_keys;    // per warp each of its columns of 8 keys by I / 32
  int values;        // per warp all row tiles, 16 columns
  int scores;        // per warp each 16 x 16 step on or below the diagonal
  int update_keys;   // per warp all row tiles by I / 16
  int copies;        // cp.async: chunk rows of readout, key and value
  int score_stores;  // 2 of each 16 x 8 tile on or below the diagonal: 8 rows of 16 bytes
  int weights;       // per warp all row tiles, 2 loads of 8 bytes a lane, by half warps
  int sums;          // with halves: of outputs and scores each sends half, and loads as much
  constexpr int ldmatrix() const { return readout + score_keys + values + scores + update_keys; }
  constexpr int total() const { return ldmatrix() + copies + score_stores + weights + 2 * sums; }
};
constexpr ChunkwiseWavefronts chunkwise_wavefronts(const ChunkwiseTile& tile) {
  const int rows = tile.chunk / 16, steps = tile.inner / 16, halves = tile.halves();
  const int warps = tile.threads() / 32 / halves;  // of a half, which has half of the steps
  const int key_tiles = tile.chunk / 8, columns = key_tiles > warps ? key_tiles / warps : 1;
  const int again = warps > key_tiles ? rows * key_tiles / warps : 0;
  return {warps * (rows + again) * steps * 4,
          warps * columns * steps / 2 * 4,
          warps * halves * rows * 4,
          warps * rows * (rows + 1) / 2 * 4,
          warps * rows * steps * 4,
          tile.chunk * (2 * tile.inner + tile.slice) * 2 / 128,
          rows * (rows + 1) * 2,
          warps * halves * rows * 2 * 2,
          (halves - 1) * tile.chunk * (tile.slice + tile.chunk) * 4 / 128};
}

constexpr int chunkwise_barriers(const ChunkwiseTile& tile) { return 1 + tile.halves(); }

// Bytes of a token and head. L2: every slice reads readout and key; values and out once. Device
// memory: each operand once.
constexpr int64_t chunkwise_l2_bytes(const ChunkwiseTile& tile, int64_t inner, int64_t outer) {
  return 2 * (2 * inner * ((outer + tile.slice - 1) / tile.slice) + 2 * outer);
}
constexpr int64_t chunkwise_memory_bytes(int64_t inner, int64_t outer) {
  return 2 * (2 * inner + 2 * outer);
}

// Instructions of a warp and chunk beside its mma that the source asks for, as they stand in the code
// (a branch not taken counts; what ptxas pads the code with for the hardware's sake does not).
constexpr int chunkwise_others(const ChunkwiseTile& tile, DType dtype) {
  const int warps = tile.threads() / 32, rows = tile.chunk / 16;
  const int score_tiles = rows * (tile.chunk / 8) / warps;
  const int copies = tile.chunk * (2 * tile.inner + tile.slice) / 8 / tile.threads();
  const int loads = chunkwise_wavefronts(tile).ldmatrix() / 4 / warps;
  const int inner = tile.inner / tile.halves();                     // of a warp
  const int state = inner / 2 + inner / 4;                          // decay; packing as an operand
  const int saturation = dtype == DType::kFloat16 ? inner / 2 : 0;  // 2 of a pair
  const int outputs = rows * (8 + 2);                               // products; powers
  // Selection of what is sent and of what is kept, sum; a store and a load of 16 bytes.
  const int sums = (tile.halves() - 1) * (rows * 8 + score_tiles * 4) * 3 / 2 +
                   (tile.halves() - 1) * (rows * 2 + score_tiles);
  // Distance, power (2), scale, product, mask (2); packing, stores, the test for the diagonal.
  const int scores = score_tiles * (4 * 7 + 2 + 2 + 4);
  const int values = rows * (8 + 8 + 4 + 2);  // unpacking, product, packing; load of the weights
  const int stores = rows * 2 * 10;           // packing, exchange, select, address, store
  // Addresses of four arrays and the code of three 8-byte copies, 30 each; expm1; tests, barriers.
  const int loop = 4 * 30 + 3 * 30 + 30 + 60;
  return loads + state + saturation + outputs + sums + scores + values + stores + copies * 6 + loop;
}
constexpr double chunkwise_others_per_mma(const ChunkwiseTile& tile, DType dtype) {
  return static_cast<double>(chunkwise_others(tile, dtype)) * (tile.threads() / 32) /
         chunkwise_mma(tile).total();
}
// At most this many in the compiled main loop: 4 for the goals' tile in bf16 (3.3 by the sum above)
// and as much above the sum for all others. Small tiles have fewer mma for the same outputs.
constexpr double chunkwise_max_others_per_mma(const ChunkwiseTile& tile, DType dtype) {
  return 4 * chunkwise_others_per_mma(tile, dtype) /
         chunkwise_others_per_mma(kChunkwiseTiles[3], DType::kBFloat16);
}

// A device of the model. The time of a token and head is that of the slowest of tensor cores, shared
// memory, issue, L2 and device memory, each as if it were alone.
struct ModelDevice {
  const char* name;
  const char* architecture;  // of its code
  DeviceLimits limits;
  double clock_ghz;
  double mma_per_cycle;         // of a multiprocessor
  double wavefronts_per_cycle;  // of a multiprocessor: 128 bytes a cycle, published
  double issue_per_cycle;       // of a multiprocessor: 4 schedulers, published
  double l2_tbps;
  double memory_tbps;  // published
  double memory_latency_ns;
};
// H100 SXM. Published: 132 multiprocessors of 2,048 dense 16-bit FMA a cycle, one mma of 2,048; 3.35
// TB/s. Estimates: mma.sync reaches 62% of that (measured by others; the rest needs wgmma), so 588
// TFLOP/s; 1.755 GHz under load (boost 1.98); L2 5.5 TB/s.
// A100 SXM 80 GB. Published: 108 multiprocessors of 1,024, 1.41 GHz, 2.04 TB/s. Estimate: L2 4.5 TB/s.
// Latency: about 470 cycles unloaded (measured by others), some 0.3 us; three times that under load.
inline constexpr ModelDevice kModelDevices[] = {
    {"H100", "90a", {90, 132, kShared90}, 1.755, 0.62, 1, 4, 5.5, 3.35, 1000},
    {"A100", "80", {80, 108, kShared80}, 1.41, 0.5, 1, 4, 4.5, 2.04, 1000},
};

// A goal: nanoseconds per token and head that the model must not exceed.
struct ChunkwiseGoal {
  const char* device;
  DType dtype;
  int64_t inner, outer;
  int64_t heads;  // B H
  int64_t tokens;
  double ns;
};
// H100: 389 TFLOP/s at the formula of C = 64 (623 kFLOP), inside the 350..430 expected of a first
// version. A100: 125 of 100..170; 128 blocks on 108 multiprocessors are two turns. I = 512 are the
// gradients of q and of k, that of v costs what the forward pass does: H100 5.5 for the three.
inline constexpr ChunkwiseGoal kChunkwiseGoals[] = {
    {"H100", DType::kBFloat16, 256, 512, 32, 8192, 1.6},
    {"A100", DType::kBFloat16, 256, 512, 32, 8192, 5.0},
    {"H100", DType::kBFloat16, 512, 256, 32, 8192, 1.95},
    {"A100", DType::kBFloat16, 512, 256, 32, 8192, 5.0},
};

// By hand, for 256 x 128 x 64: 8 warps, 4 row tiles, 16 steps of I.
static_assert(chunkwise_mma(kChunkwiseTiles[3]).total() == 1024 + 512 + 160 + 1024);
static_assert(chunkwise_wavefronts(kChunkwiseTiles[3]).total() ==
              2048 + 256 + 128 + 320 + 2048 + 640 + 40 + 128);
// For 512 x 64 x 32: two halves of 4 warps, 2 row tiles, 32 steps of I.
static_assert(chunkwise_mma(kChunkwiseTiles[5]).total() == 512 + 256 + 24 + 512);
static_assert(chunkwise_wavefronts(kChunkwiseTiles[5]).total() ==
              1024 + 256 + 64 + 48 + 1024 + 544 + 12 + 64 + 2 * 96);
static_assert(chunkwise_l2_bytes(kChunkwiseTiles[3], 256, 512) == 6144);
static_assert(chunkwise_memory_bytes(256, 512) == 3072);

}  // namespace retnet::kernels::cuda
