// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {

// Computes outputs and final state of retention in the chunkwise form, as `plan` says (chunkwise_plan of
// the same params, without an unsupported_reason). The launch is asynchronous on `stream`. The device of
// the pointers must be current. Returns cudaErrorInvalidValue if an operand is not aligned
// (chunkwise_aligned) or the workspace is missing, and the error of the launch if the device lacks the
// shared memory.
cudaError_t launch_chunkwise(const ChunkwiseParams& params, const ChunkwisePlan& plan,
                             cudaStream_t stream);

// The launches that it consists of.

// One phase, with a block for each slice of each head of each of `segments`. These are whole sequences or
// segments of `segment_length` tokens. Each dtype and tile is instantiated in a file of its own
// (instances.cmake).
template <DType kDtype, int kTile>
cudaError_t chunkwise_launch(const ChunkwiseParams& params, ChunkwisePhase phase,
                             int64_t segment_length, int64_t segments, cudaStream_t stream);

// Turns the states that segments reach from zero into those they start from. For the segments s of
// each sequence and head, in order, all except the last of L = `segment_length` tokens:
//
//     start_0 = initial_state,   start_{s+1} = gamma^L start_s + local_s
//
// `params.workspace_ptr` [segments, H, Dk, Dv] holds local_s of all segments except last ones, and
// receives the starts.
cudaError_t launch_segment_scan(const ChunkwiseParams& params, int64_t segment_length,
                                cudaStream_t stream);

}  // namespace retnet::kernels::cuda
