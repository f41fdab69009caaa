// SPDX-License-Identifier: Apache-2.0
//
// The typed launcher, instantiated in a file of its own for each dtype and tile (instances.cmake).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/retention/log_decay_grad/plan.h"

namespace retnet::kernels::cuda {

struct LogDecayParams {
  ChunkwiseParams forward;
  ChunkwiseGradients gradients;
};

// One launch of the kernel, with a block for each slice of each head of each sequence.
template <DType kDtype, int kTile>
cudaError_t log_decay_launch(const LogDecayParams& params, int64_t slices, cudaStream_t stream);

}  // namespace retnet::kernels::cuda
