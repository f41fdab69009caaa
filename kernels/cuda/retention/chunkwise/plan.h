// SPDX-License-Identifier: Apache-2.0
//
// Parameters of the chunkwise retention kernel, its tile table, and what follows from both on the
// host: which calls the kernel takes, with which tile, cut into which segments, and how much
// workspace that needs. Plain C++: no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/dtype.h"

namespace retnet::kernels::cuda {

// [B, T, H, D] with a contiguous last dimension; strides count elements.
struct RetentionOperand {
  const void* ptr = nullptr;
  int64_t stride_b = 0;
  int64_t stride_t = 0;
  int64_t stride_h = 0;
};

// The operator Ret(a, b, c; S0): readout a, key b and value c. With inner size I (of a and b) and
// outer size O (of c), per sequence and head,
//
//     S_t   = gamma S_{t-1} + b_t^T c_t,   S_{-1} = S0      [I, O]
//     out_t = scale a_t S_t                                 [O]
//
// Retention is Ret(q, k, v; initial_state). In reverse it is the adjoint of the state that is carried,
// from the last token to the first. It enters undecayed and decays once on its way out:
//
//     R_t   = (R_{t+1} gamma, at the last token X) + scale b_t^T c_t
//     out_t = a_t R_t,   final state gamma R_0
//
// The gradients of retention are dq = Ret(dout, v, k; initial_state^T),
// dk = Ret_rev(v, dout, q; dfinal_state^T) and dv = Ret_rev(k, q, dout; dfinal_state), whose final state
// is the gradient of the initial one.
struct ChunkwiseParams {
  int64_t batch = 0;   // B
  int64_t tokens = 0;  // T
  int64_t heads = 0;   // H
  int64_t inner = 0;   // I
  int64_t outer = 0;   // O
  DType dtype = DType::kBFloat16;
  float scale = 1;
  int direction = 1;                         // of time: -1 in reverse
  bool transposed = false;                   // states are [N, H, O, I]: O is Dk and I is Dv
  RetentionOperand readout, key, value;      // key or value may be null: zeros
  const float* log_decay_ptr = nullptr;      // [H]
  const int32_t* cu_seqlens_ptr = nullptr;   // [N + 1] or null; each bound is clamped to [0, T]
  int64_t sequences = 0;                     // N: B, or the number of packed sequences (B is 1)
  const float* initial_state_ptr = nullptr;  // [N, H, I, O] contiguous, or null: zeros
  void* out_ptr = nullptr;                   // [B, T, H, O] contiguous
  float* final_state_ptr = nullptr;          // [N, H, I, O] contiguous, or null: not wanted
  // chunkwise_plan()'s workspace_bytes of device memory, 16-byte aligned: where segments start
  float* workspace_ptr = nullptr;
};

// The gradients of Ret(q, k, v; initial_state) that come in and go out; null: zeros, or not wanted.
struct ChunkwiseGradients {
  RetentionOperand out;                    // [B, T, H, Dv]
  const float* final_state_ptr = nullptr;  // [N, H, Dk, Dv] contiguous
  void* q_ptr = nullptr;                   // [B, T, H, Dk] contiguous
  void* k_ptr = nullptr;                   // [B, T, H, Dk] contiguous
  void* v_ptr = nullptr;                   // [B, T, H, Dv] contiguous
  float* initial_state_ptr = nullptr;      // [N, H, Dk, Dv] contiguous: with v's
  double* log_decay_ptr = nullptr;         // [N, H, slices] of log_decay_plan: parts of it
};

enum class ChunkwisePass { kQ, kK, kV };

// The call that computes the gradient of q, k or v, but for its workspace. `forward` holds q, k and v as
// readout, key and value; what it says of outputs is not read.
ChunkwiseParams chunkwise_gradient(ChunkwisePass pass, const ChunkwiseParams& forward,
                                   const ChunkwiseGradients& gradients);

// A block owns `slice` columns of the state of one sequence and head: 16 to a warp, all of I in
// registers (inner / 2 of a thread), or, above 256, to two warps, each with a half of I. Chunks have
// `chunk` tokens.
struct ChunkwiseTile {
  int inner;
  int slice;
  int chunk;

  constexpr int halves() const { return inner > 256 ? 2 : 1; }
  constexpr int threads() const { return slice / 16 * 32 * halves(); }
  // 16-bit tiles of readout (one), key and value (two each, so that the next chunk arrives while this
  // one is worked on) and scores; fp32 weights of the values in a full chunk and in the last one; with
  // halves, the fp32 sums of outputs and scores that they exchange.
  constexpr size_t shared_bytes() const {
    return static_cast<size_t>(chunk) *
           (2 * (3 * inner + 2 * slice + chunk) + 2 * 4 + (halves() - 1) * 4 * (slice + chunk));
  }
};

// The first that is wide enough and fits into the device's shared memory is taken.
inline constexpr ChunkwiseTile kChunkwiseTiles[] = {
    {64, 64, 64}, {64, 128, 64}, {128, 128, 64}, {256, 128, 64}, {256, 128, 32}, {512, 64, 32},
};
inline constexpr int kChunkwiseTileCount = sizeof(kChunkwiseTiles) / sizeof(ChunkwiseTile);
inline constexpr int64_t kChunkwiseMaxKey = 256;         // Dk, which is I or, where transposed, O
inline constexpr int64_t kChunkwiseMaxValue = 512;       // Dv
inline constexpr int64_t kChunkwiseMaxTokens = 1 << 30;  // positions are 32 bits wide
inline constexpr int kChunkwiseMinCapability = 80;  // cp.async, ldmatrix and mma of 16 x 8 x 16
// Shared memory a block may have: compute capability 8.0, 8.6 (also 8.9 and 12.0), 9.0.
inline constexpr size_t kShared80 = 163 << 10, kShared86 = 99 << 10, kShared90 = 227 << 10;

namespace chunkwise_detail {

constexpr bool tiles_are_valid() {
  for (const auto& tile : kChunkwiseTiles) {
    const int warps = tile.slice / 16;  // of a half
    const int key_tiles = tile.chunk / 8, row_tiles = tile.chunk / 16;
    // Warps share the scores evenly: whole columns of tiles each, or a part of one.
    const bool scores = key_tiles % warps == 0 || (tile.halves() == 1 && warps % key_tiles == 0 &&
                                                   row_tiles % (warps / key_tiles) == 0);
    // Halves share the rows evenly.
    const bool rows = row_tiles % tile.halves() == 0;
    // Threads copy whole rows of 16-byte units, in steps that keep the swizzle of a thread's unit,
    // or flip one bit of it.
    const bool copies = tile.threads() % tile.inner == 0 || tile.threads() * 8 % tile.inner == 0;
    const int rows_a_step =
        tile.threads() * 8 / (tile.inner > tile.slice ? tile.inner : tile.slice);
    if (tile.inner % 64 != 0 || tile.slice % 64 != 0 || tile.chunk % 32 != 0 || !scores || !rows ||
        !copies || (rows_a_step % 8 != 0 && rows_a_step != 4) || tile.chunk % rows_a_step != 0 ||
        tile.shared_bytes() > kShared80) {
      return false;
    }
  }
  return true;
}
static_assert(tiles_are_valid());

}  // namespace chunkwise_detail

// What a device has for the plan.
struct DeviceLimits {
  int capability = 0;  // major * 10 + minor
  int multiprocessors = 0;
  size_t shared_bytes = 0;  // that a block may have
};

struct ChunkwisePlan {
  // Null, or why the kernel does not take the call.
  const char* refusal = nullptr;
  int tile = -1;  // index into kChunkwiseTiles
  int64_t slices = 0;
  // Tokens after which a sequence is cut into parts that run side by side; 0: not cut.
  int64_t segment_length = 0;
  int64_t rows = 0;  // of blocks: sequences, or parts of them and, of packed ones, some empty rows
  size_t workspace_bytes = 0;
};

// With `deterministic`, sequences longer than this are cut at its multiples, whatever else runs.
inline constexpr int64_t kChunkwiseDeterministicSegment = 2048;

// A pure function of the shape, the dtype and the device. `chunk` is the chunk asked for, or 0: any.
// `deterministic`: a sequence's result does not depend on what else is in the call.
ChunkwisePlan chunkwise_plan(const ChunkwiseParams& params, const DeviceLimits& device,
                             int64_t chunk, bool deterministic);

// Whether every row of an operand starts at a multiple of 8 bytes, as the copies to shared memory
// need it; and whether the rows of all three start and end at multiples of 16, for wider copies.
bool chunkwise_aligned(const RetentionOperand& operand, const ChunkwiseParams& params);
bool chunkwise_wide(const ChunkwiseParams& params);

}  // namespace retnet::kernels::cuda
