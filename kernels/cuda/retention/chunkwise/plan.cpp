// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {
namespace {

// Whether all tokens of the operand start at multiples of `bytes`. The stride of a dimension of one element
// or none is never used and may be anything.
bool aligned(const RetentionOperand& operand, const ChunkwiseParams& p, int64_t bytes) {
  const int64_t elements = bytes / 2;
  return reinterpret_cast<uintptr_t>(operand.ptr) % bytes == 0 &&
         (p.batch <= 1 || operand.stride_b % elements == 0) &&
         (p.tokens <= 1 || operand.stride_t % elements == 0) &&
         (p.heads <= 1 || operand.stride_h % elements == 0);
}

}  // namespace

bool chunkwise_aligned(const RetentionOperand& operand, const ChunkwiseParams& params) {
  return aligned(operand, params, 8);
}

bool chunkwise_wide(const ChunkwiseParams& params) {
  return params.head_dim_qk % 8 == 0 && params.head_dim_v % 8 == 0 &&
         aligned(params.q, params, 16) && aligned(params.k, params, 16) &&
         aligned(params.v, params, 16);
}

ChunkwiseParams chunkwise_gradient(ChunkwisePass pass, const ChunkwiseParams& forward,
                                   const ChunkwiseGradients& gradients) {
  ChunkwiseParams p = forward;
  p.final_state_ptr = p.workspace_ptr = nullptr;
  p.direction = pass == ChunkwisePass::kGradQ ? 1 : -1;
  p.transposed = pass != ChunkwisePass::kGradV;
  if (p.direction < 0) p.initial_state_ptr = gradients.grad_final_state_ptr;
  if (p.transposed) {
    p.head_dim_qk = forward.head_dim_v;
    p.head_dim_v = forward.head_dim_qk;
  }
  switch (pass) {
    case ChunkwisePass::kGradQ:
      p.q = gradients.grad_out;
      p.k = forward.v;
      p.v = forward.k;
      p.out_ptr = gradients.grad_q_ptr;
      break;
    case ChunkwisePass::kGradK:
      p.q = forward.v;
      p.k = gradients.grad_out;
      p.v = forward.q;
      p.out_ptr = gradients.grad_k_ptr;
      break;
    case ChunkwisePass::kGradV:
      p.q = forward.k;
      p.k = forward.q;
      p.v = gradients.grad_out;
      p.out_ptr = gradients.grad_v_ptr;
      p.final_state_ptr = gradients.grad_initial_state_ptr;
      break;
  }
  return p;
}

ChunkwisePlan chunkwise_plan(const ChunkwiseParams& p, const DeviceLimits& device, int64_t chunk,
                             bool batch_invariance_required) {
  ChunkwisePlan plan;
  const auto unsupported = [&](const char* reason) {
    plan.unsupported_reason = reason;
    return plan;
  };
  if (p.dtype == DType::kFloat32)
    return unsupported("the kernel supports only bfloat16 and float16");
  if (device.capability < kChunkwiseMinCapability) {
    return unsupported("the kernel needs compute capability 8.0");
  }
  if (p.head_dim_qk % 4 != 0 || p.head_dim_v % 4 != 0)
    return unsupported("Dk and Dv must be multiples of 4");
  const int64_t forward_qk = p.transposed ? p.head_dim_v : p.head_dim_qk;
  const int64_t forward_v = p.transposed ? p.head_dim_qk : p.head_dim_v;
  if (forward_qk > kChunkwiseMaxHeadDimQk || forward_v > kChunkwiseMaxHeadDimV) {
    return unsupported("Dk must be at most 256 and Dv at most 512");
  }
  if (p.tokens > kChunkwiseMaxTokens) return unsupported("T must be at most 2^30");
  bool fits = false;
  for (int i = 0; i < kChunkwiseTileCount && plan.tile < 0; ++i) {
    const ChunkwiseTile& tile = kChunkwiseTiles[i];
    // Only heads that need halves take the tile that has them, because its slices are narrow.
    const bool wide = tile.halves() > 1 ? p.head_dim_qk > tile.head_dim_qk / 2
                                        : tile.slice >= (p.head_dim_v < 128 ? p.head_dim_v : 128);
    if (tile.head_dim_qk < p.head_dim_qk || !wide || tile.shared_bytes() > device.shared_bytes)
      continue;
    fits = true;
    if (chunk == 0 || chunk == tile.chunk) plan.tile = i;
  }
  if (!fits) return unsupported("the device has too little shared memory for every tile");
  if (plan.tile < 0) return unsupported("no tile has this chunk_size");

  const ChunkwiseTile& tile = kChunkwiseTiles[plan.tile];
  plan.slices = (p.head_dim_v + tile.slice - 1) / tile.slice;
  plan.segments = p.sequences;
  // Segments compute the update of the state twice. They pay if whole sequences leave at least half of
  // the multiprocessors idle. The plan then aims at as many segments as run at once.
  const int64_t parallel = p.heads * plan.slices;  // blocks of one sequence
  if (batch_invariance_required) {
    if (p.tokens > kChunkwiseBatchInvariantSegment) {
      plan.segment_length = kChunkwiseBatchInvariantSegment;
    }
  } else if (parallel > 0 && 2 * p.sequences * parallel <= device.multiprocessors) {
    const bool packed = p.cu_seqlens_ptr != nullptr;  // whose lengths are not known here
    const int64_t wanted = device.multiprocessors / parallel / (packed ? 1 : p.sequences);
    const int64_t chunks = (p.tokens + wanted * tile.chunk - 1) / (wanted * tile.chunk);
    constexpr int64_t kMinChunks = 8;
    plan.segment_length = tile.chunk * (chunks < kMinChunks ? kMinChunks : chunks);
    if (plan.segment_length >= p.tokens) plan.segment_length = 0;
  }
  if (plan.segment_length > 0) {
    const int64_t length = plan.segment_length;
    plan.segments = p.cu_seqlens_ptr != nullptr ? p.tokens / length + p.sequences
                                                : p.batch * ((p.tokens + length - 1) / length);
    plan.workspace_bytes =
        static_cast<size_t>(plan.segments * p.heads * p.head_dim_qk * p.head_dim_v) * sizeof(float);
    if (p.sequences * p.heads * segment_scan_blocks(p) > INT32_MAX) {
      return unsupported("the scan of segments would need more than 2^31 - 1 blocks");
    }
  }
  if (plan.segments * parallel > INT32_MAX)
    return unsupported("the launch would need more than 2^31 - 1 blocks");
  return plan;
}

}  // namespace retnet::kernels::cuda
