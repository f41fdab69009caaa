// SPDX-License-Identifier: Apache-2.0
//
// Parameters of the chunkwise retention kernel, its tile table, and what follows from both on the host:
// which calls the kernel supports, with which tile, how sequences are cut into segments, and how much
// workspace that needs. This file is plain C++ and needs no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device.h"
#include "kernels/cuda/dtype.h"

namespace retnet::kernels::cuda {

// A tensor [B, T, H, D] with a contiguous last dimension. Strides count elements.
struct RetentionOperand {
  const void* ptr = nullptr;
  int64_t stride_b = 0;
  int64_t stride_t = 0;
  int64_t stride_h = 0;
};

// The operator Ret(q, k, v; S0). With q and k of head_dim_qk (Dk) and v of head_dim_v (Dv), it computes
// for each sequence and head
//
//     S_t   = gamma S_{t-1} + k_t^T v_t,   S_{-1} = S0      [Dk, Dv]
//     out_t = scale q_t S_t                                 [Dv]
//
// Retention is Ret(q, k, v; initial_state). In reverse the operator carries the gradient R of the state
// from the last token to the first. The last token takes the state that comes in, grad_final_state,
// undecayed; the state that leaves has decayed once more:
//
//     R_t   = gamma R_{t+1} + scale k_t^T v_t   (at the last token: grad_final_state + ...)
//     out_t = q_t R_t,   final state gamma R_0
//
// The gradients of retention are the same operator with other tensors as q, k and v:
//
//     gradient     operator                          q         k         v         Dk, Dv are
//     grad_q       Ret, from initial_state^T         grad_out  v         k         Dv, Dk of the call
//     grad_k       Ret_rev, from grad_final_state^T  v         grad_out  q         Dv, Dk of the call
//     grad_v       Ret_rev, from grad_final_state    k         q         grad_out  Dk, Dv of the call
//
// The final state of the last operator is grad_initial_state.
struct ChunkwiseParams {
  int64_t batch = 0;        // B
  int64_t tokens = 0;       // T
  int64_t heads = 0;        // H
  int64_t head_dim_qk = 0;  // Dk, of what plays q and k
  int64_t head_dim_v = 0;   // Dv, of what plays v
  DType dtype = DType::kBFloat16;
  float scale = 1;
  int direction = 1;                         // of time: -1 in reverse
  bool transposed = false;                   // states are [N, H, Dv, Dk]
  RetentionOperand q, k, v;                  // k or v may be null: zeros
  const float* log_decay_ptr = nullptr;      // [H]
  const int32_t* cu_seqlens_ptr = nullptr;   // [N + 1] or null; each bound is clamped to [0, T]
  int64_t sequences = 0;                     // N: B, or the number of packed sequences (B is 1)
  const float* initial_state_ptr = nullptr;  // [N, H, Dk, Dv] contiguous, or null: zeros
  void* out_ptr = nullptr;                   // [B, T, H, Dv] contiguous
  float* final_state_ptr = nullptr;          // [N, H, Dk, Dv] contiguous, or null: not required
  // Device memory of the workspace_bytes of the plan, 16-byte aligned: the states that segments start from
  float* workspace_ptr = nullptr;
};

// One launch of the kernel.
enum class ChunkwisePhase : int {
  kWhole,  // whole sequences: from the initial state to outputs and final state
  kLocal,  // the states that segments reach from zero, into the workspace, except last segments
  kFused,  // from the states in the workspace to outputs and, for last segments, the final state
};

// The gradients of Ret(q, k, v; initial_state) that come in and go out. Null stands for zeros, or for a
// gradient that is not required. Dk and Dv are those of the forward pass.
struct ChunkwiseGradients {
  RetentionOperand grad_out;                    // [B, T, H, Dv]
  const float* grad_final_state_ptr = nullptr;  // [N, H, Dk, Dv] contiguous
  void* grad_q_ptr = nullptr;                   // [B, T, H, Dk] contiguous
  void* grad_k_ptr = nullptr;                   // [B, T, H, Dk] contiguous
  void* grad_v_ptr = nullptr;                   // [B, T, H, Dv] contiguous
  float* grad_initial_state_ptr =
      nullptr;                           // [N, H, Dk, Dv] contiguous; written by the pass of grad_v
  double* grad_log_decay_ptr = nullptr;  // [N, H, slices] of grad_log_decay_plan: its parts
};

enum class ChunkwisePass { kGradQ, kGradK, kGradV };

// Returns the parameters of the pass that computes grad_q, grad_k or grad_v, except the workspace. It reads
// q, k, v and what comes with them from `forward`, but no output.
ChunkwiseParams chunkwise_gradient(ChunkwisePass pass, const ChunkwiseParams& forward,
                                   const ChunkwiseGradients& gradients);

// A block owns `slice` columns of the state of one sequence and head. Each warp has 16 of them, with all
// head_dim_qk rows in registers (head_dim_qk / 2 of a thread). Above 256 rows two warps share 16 columns,
// and each has a half of the rows. Chunks have `chunk` tokens.
struct ChunkwiseTile {
  int head_dim_qk;
  int slice;
  int chunk;

  constexpr int halves() const { return head_dim_qk > 256 ? 2 : 1; }
  constexpr int threads() const { return slice / 16 * 32 * halves(); }
  // There are 16-bit tiles of q (one), of k and v (two each, so that the next chunk arrives while this one
  // is computed) and of scores, and float32 weights of v in a full chunk and in the last one. Halves also
  // exchange float32 sums of outputs and scores.
  constexpr size_t shared_bytes() const {
    return static_cast<size_t>(chunk) * (2 * (3 * head_dim_qk + 2 * slice + chunk) + 2 * 4 +
                                         (halves() - 1) * 4 * (slice + chunk));
  }
};

// The plan takes the first that is wide enough and fits into the shared memory of the device.
inline constexpr ChunkwiseTile kChunkwiseTiles[] = {
    {64, 64, 64}, {64, 128, 64}, {128, 128, 64}, {256, 128, 64}, {256, 128, 32}, {512, 64, 32},
};
inline constexpr int kChunkwiseTileCount = sizeof(kChunkwiseTiles) / sizeof(ChunkwiseTile);
// Head sizes of the forward pass. Its gradients exchange them (`transposed`).
inline constexpr int64_t kChunkwiseMaxHeadDimQk = 256;
inline constexpr int64_t kChunkwiseMaxHeadDimV = 512;
inline constexpr int64_t kChunkwiseMaxTokens = 1 << 30;  // positions are 32 bits wide
inline constexpr int kChunkwiseMinCapability = 80;  // cp.async, ldmatrix and mma of 16 x 8 x 16

inline constexpr int kSegmentScanThreads = 256;  // of a block, one for each element of a state

// Blocks of the scan of one sequence and head.
constexpr int64_t segment_scan_blocks(const ChunkwiseParams& p) {
  return (p.head_dim_qk * p.head_dim_v + kSegmentScanThreads - 1) / kSegmentScanThreads;
}

namespace chunkwise_detail {

constexpr bool tiles_are_valid() {
  for (const auto& tile : kChunkwiseTiles) {
    const int warps = tile.slice / 16;  // of a half
    const int k_tiles = tile.chunk / 8, row_tiles = tile.chunk / 16;
    // Warps share the scores evenly. Each has whole columns of tiles, or a part of one column.
    const bool scores = k_tiles % warps == 0 || (tile.halves() == 1 && warps % k_tiles == 0 &&
                                                 row_tiles % (warps / k_tiles) == 0);
    // Halves share the rows evenly.
    const bool rows = row_tiles % tile.halves() == 0;
    // In one pass threads copy whole rows of 16-byte units. Their number keeps the swizzle of the unit of a
    // thread, or flips one bit of it.
    const int widest = tile.head_dim_qk > tile.slice ? tile.head_dim_qk : tile.slice;
    const int rows_a_pass = tile.threads() * 8 / widest;
    const bool copies =
        tile.threads() % tile.head_dim_qk == 0 || tile.threads() * 8 % tile.head_dim_qk == 0;
    if (tile.head_dim_qk % 64 != 0 || tile.slice % 64 != 0 || tile.chunk % 32 != 0 || !scores ||
        !rows || !copies || (rows_a_pass % 8 != 0 && rows_a_pass != 4) ||
        tile.chunk % rows_a_pass != 0 || tile.shared_bytes() > kShared80) {
      return false;
    }
  }
  return true;
}
static_assert(tiles_are_valid());

}  // namespace chunkwise_detail

// How a call will be launched.
struct ChunkwisePlan {
  const char* unsupported_reason = nullptr;  // null if the kernel supports the call
  int tile = -1;                             // index into kChunkwiseTiles
  int64_t slices = 0;                        // of head_dim_v
  // Tokens after which a sequence is cut into segments that run side by side. 0 if it is not cut.
  int64_t segment_length = 0;
  // The number of segments that have blocks: whole sequences, or their segments. Some segments of packed
  // sequences are empty.
  int64_t segments = 0;
  size_t workspace_bytes = 0;
};

// If batch invariance is required, sequences longer than this are cut at its multiples, whatever else
// runs.
inline constexpr int64_t kChunkwiseBatchInvariantSegment = 2048;

// A pure function of the shape, the dtype and the device. `chunk` is the chunk that the caller asks for; 0
// stands for any. If `batch_invariance_required`, the result of a sequence does not depend on what else is
// in the call.
ChunkwisePlan chunkwise_plan(const ChunkwiseParams& params, const DeviceLimits& device,
                             int64_t chunk, bool batch_invariance_required);

// Whether every token of an operand starts at a multiple of 8 bytes. The copies to shared memory need that.
bool chunkwise_aligned(const RetentionOperand& operand, const ChunkwiseParams& params);
// Whether the tokens of all three operands start and end at multiples of 16 bytes, for wider copies.
bool chunkwise_wide(const ChunkwiseParams& params);

}  // namespace retnet::kernels::cuda
