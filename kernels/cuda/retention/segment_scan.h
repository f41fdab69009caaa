// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {

// Turns the states that segments reach from zero into those they start from. For the segments s of
// each sequence and head, in order, all but the last of L = `segment_length` tokens (the plan's):
//
//     start_0 = initial_state,   start_{s+1} = gamma^L start_s + local_s
//
// `params.workspace_ptr` [rows, H, I, O] holds the local states, but for last segments, and receives
// the starts.
cudaError_t launch_segment_scan(const ChunkwiseParams& params, int64_t segment_length,
                                cudaStream_t stream);

}  // namespace retnet::kernels::cuda
