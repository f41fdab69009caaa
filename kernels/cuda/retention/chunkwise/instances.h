// SPDX-License-Identifier: Apache-2.0
//
// The typed launcher, instantiated in a file of its own for each dtype and tile (instances.cmake).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {

enum class ChunkwisePhase : int {
  kWhole,  // whole sequences: initial state to outputs and final state
  kLocal,  // the states that segments reach from zero, into the workspace, but for last segments
  kFused,  // from the workspace's states to outputs and, of last segments, the final state
};

// One launch of the kernel, with a block for each slice of each head of each of `rows`: sequences,
// or segments of `segment_length` tokens.
template <DType kDtype, int kTile>
cudaError_t chunkwise_launch(const ChunkwiseParams& params, ChunkwisePhase phase,
                             int64_t segment_length, int64_t rows, cudaStream_t stream);

}  // namespace retnet::kernels::cuda
