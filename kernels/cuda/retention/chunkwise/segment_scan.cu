// SPDX-License-Identifier: Apache-2.0
//
// Computes the states that the segments of a sequence start from (launch_segment_scan). A thread takes one
// element of the state of one sequence and head through all of its segments.
#include "kernels/cuda/prim/prim.cuh"
#include "kernels/cuda/retention/chunkwise/launch.h"
#include "kernels/cuda/retention/decay.cuh"
#include "kernels/cuda/retention/segments.cuh"

namespace retnet::kernels::cuda {
namespace {

__global__ void __launch_bounds__(kSegmentScanThreads)
    segment_scan_kernel(const ChunkwiseParams p, int segment_length, int blocks_per_state) {
  const int64_t sequence_and_head = blockIdx.x / static_cast<uint32_t>(blocks_per_state);
  const int n = static_cast<int>(sequence_and_head / p.heads);
  const int64_t head = sequence_and_head - n * p.heads;
  const int64_t size = p.head_dim_qk * p.head_dim_v;
  const int64_t element =
      (blockIdx.x - sequence_and_head * blocks_per_state) * kSegmentScanThreads + threadIdx.x;
  if (element >= size) return;

  const Decay decay(p.log_decay_ptr[head]);
  const float power_minus_one = decay.power_minus_one(segment_length);
  float state = p.initial_state_ptr != nullptr && !initial_state_decays_to_zero(p, decay, n)
                    ? p.initial_state_ptr[sequence_and_head * size + element]
                    : 0.0f;
  const int64_t first = first_segment(p, n, segment_length);
  float* at = p.workspace_ptr + (first * p.heads + head) * size + element;
  for (int left = segment_count(sequence_length(p, n), segment_length); left > 0; --left) {
    const float local = left > 1 ? *at : 0.0f;
    *at = state;
    state = (decay.gamma_is_zero ? 0.0f : state + state * power_minus_one) + local;
    at += p.heads * size;
  }
}

}  // namespace

cudaError_t launch_segment_scan(const ChunkwiseParams& params, int64_t segment_length,
                                cudaStream_t stream) {
  const int64_t blocks = segment_scan_blocks(params);
  return prim::launch(segment_scan_kernel,
                      static_cast<unsigned>(params.sequences * params.heads * blocks),
                      kSegmentScanThreads, stream, params, static_cast<int>(segment_length),
                      static_cast<int>(blocks));
}

}  // namespace retnet::kernels::cuda
