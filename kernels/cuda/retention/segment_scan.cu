// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/retention/segment_scan.h"
#include "kernels/cuda/retention/segments.cuh"

namespace retnet::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// A thread takes one element of the state of one sequence and head through all of its segments.
__global__ void __launch_bounds__(kThreads)
    segment_scan_kernel(const ChunkwiseParams p, int segment_length, int blocks_per_state) {
  const int64_t sequence_and_head = blockIdx.x / static_cast<uint32_t>(blocks_per_state);
  const int n = static_cast<int>(sequence_and_head / p.heads);
  const int64_t head = sequence_and_head - n * p.heads;
  const int64_t size = p.inner * p.outer;
  const int64_t element =
      (blockIdx.x - sequence_and_head * blocks_per_state) * kThreads + threadIdx.x;
  if (element >= size) return;

  const Decay decay(p.log_decay_ptr[head]);
  const float minus_one = decay.power_minus_one(segment_length);
  float state = p.initial_state_ptr != nullptr && !drops_start(p, decay, n)
                    ? p.initial_state_ptr[sequence_and_head * size + element]
                    : 0.0f;
  const int64_t row = first_row(p, n, segment_length);
  float* at = p.workspace_ptr + (row * p.heads + head) * size + element;
  for (int left = segment_count(sequence_length(p, n), segment_length); left > 0; --left) {
    const float local = left > 1 ? *at : 0.0f;
    *at = state;
    state = (decay.forget ? 0.0f : state + state * minus_one) + local;
    at += p.heads * size;
  }
}

}  // namespace

cudaError_t launch_segment_scan(const ChunkwiseParams& params, int64_t segment_length,
                                cudaStream_t stream) {
  const int64_t blocks = (params.inner * params.outer + kThreads - 1) / kThreads;
  return prim::launch(segment_scan_kernel,
                      static_cast<unsigned>(params.sequences * params.heads * blocks), kThreads,
                      stream, params, static_cast<int>(segment_length), static_cast<int>(blocks));
}

}  // namespace retnet::kernels::cuda
