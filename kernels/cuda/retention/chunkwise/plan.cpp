// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {
namespace {

// All rows of the operand start at multiples of `bytes`. The stride of a dimension of one element or
// none is never used and may be anything.
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
  return params.inner % 8 == 0 && params.outer % 8 == 0 && aligned(params.readout, params, 16) &&
         aligned(params.key, params, 16) && aligned(params.value, params, 16);
}

ChunkwiseParams chunkwise_gradient(ChunkwisePass pass, const ChunkwiseParams& forward,
                                   const ChunkwiseGradients& gradients) {
  ChunkwiseParams p = forward;
  const RetentionOperand &q = forward.readout, &k = forward.key, &v = forward.value;
  p.final_state_ptr = p.workspace_ptr = nullptr;
  p.direction = pass == ChunkwisePass::kQ ? 1 : -1;
  p.transposed = pass != ChunkwisePass::kV;
  if (p.direction < 0) p.initial_state_ptr = gradients.final_state_ptr;
  if (p.transposed) {
    p.inner = forward.outer;
    p.outer = forward.inner;
  }
  switch (pass) {
    case ChunkwisePass::kQ:
      p.readout = gradients.out;
      p.key = v;
      p.value = k;
      p.out_ptr = gradients.q_ptr;
      break;
    case ChunkwisePass::kK:
      p.readout = v;
      p.key = gradients.out;
      p.value = q;
      p.out_ptr = gradients.k_ptr;
      break;
    case ChunkwisePass::kV:
      p.readout = k;
      p.key = q;
      p.value = gradients.out;
      p.out_ptr = gradients.v_ptr;
      p.final_state_ptr = gradients.initial_state_ptr;
      break;
  }
  return p;
}

ChunkwisePlan chunkwise_plan(const ChunkwiseParams& p, const DeviceLimits& device, int64_t chunk,
                             bool deterministic) {
  ChunkwisePlan plan;
  const auto refuse = [&](const char* why) {
    plan.refusal = why;
    return plan;
  };
  if (p.dtype == DType::kFloat32) return refuse("the kernel takes bfloat16 and float16");
  if (device.capability < kChunkwiseMinCapability) {
    return refuse("the kernel needs compute capability 8.0");
  }
  if (p.inner % 4 != 0 || p.outer % 4 != 0) return refuse("Dk and Dv must be multiples of 4");
  const int64_t keys = p.transposed ? p.outer : p.inner;
  const int64_t values = p.transposed ? p.inner : p.outer;
  if (keys > kChunkwiseMaxKey || values > kChunkwiseMaxValue) {
    return refuse("Dk must be at most 256 and Dv at most 512");
  }
  if (p.tokens > kChunkwiseMaxTokens) return refuse("T must be at most 2^30");
  bool fits = false;
  for (int i = 0; i < kChunkwiseTileCount && plan.tile < 0; ++i) {
    const ChunkwiseTile& tile = kChunkwiseTiles[i];
    // A tile with halves has narrow slices, and none but the heads that need it.
    const bool wide = tile.halves() > 1 ? p.inner > tile.inner / 2
                                        : tile.slice >= (p.outer < 128 ? p.outer : 128);
    if (tile.inner < p.inner || !wide || tile.shared_bytes() > device.shared_bytes) continue;
    fits = true;
    if (chunk == 0 || chunk == tile.chunk) plan.tile = i;
  }
  if (!fits) return refuse("the device has too little shared memory for every tile");
  if (plan.tile < 0) return refuse("no tile has this chunk_size");

  const ChunkwiseTile& tile = kChunkwiseTiles[plan.tile];
  plan.slices = (p.outer + tile.slice - 1) / tile.slice;
  plan.rows = p.sequences;
  // Segments cost the update of the state twice. They pay where whole sequences leave at least half
  // of the multiprocessors idle; then as many as run at once are the aim.
  const int64_t parallel = p.heads * plan.slices;  // blocks of one sequence
  if (deterministic) {
    if (p.tokens > kChunkwiseDeterministicSegment) {
      plan.segment_length = kChunkwiseDeterministicSegment;
    }
  } else if (parallel > 0 && 2 * p.sequences * parallel <= device.multiprocessors) {
    const bool packed = p.cu_seqlens_ptr != nullptr;  // whose lengths are not known here
    const int64_t rows = device.multiprocessors / parallel / (packed ? 1 : p.sequences);
    const int64_t chunks = (p.tokens + rows * tile.chunk - 1) / (rows * tile.chunk);
    const int64_t least = 8;
    plan.segment_length = tile.chunk * (chunks < least ? least : chunks);
    if (plan.segment_length >= p.tokens) plan.segment_length = 0;
  }
  if (plan.segment_length > 0) {
    const int64_t length = plan.segment_length;
    plan.rows = p.cu_seqlens_ptr != nullptr ? p.tokens / length + p.sequences
                                            : p.batch * ((p.tokens + length - 1) / length);
    plan.workspace_bytes =
        static_cast<size_t>(plan.rows * p.heads * p.inner * p.outer) * sizeof(float);
  }
  if (plan.rows * parallel > INT32_MAX) return refuse("more than 2^31 - 1 blocks");
  return plan;
}

}  // namespace retnet::kernels::cuda
