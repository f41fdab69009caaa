// SPDX-License-Identifier: Apache-2.0
//
// The typed launcher, instantiated in a file of its own for each dtype and width (instances.cmake).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/retention/step/plan.h"

namespace retnet::kernels::cuda {

// `kWide`: accesses of 16 bytes to the state (retention_step_wide), else of 4.
template <DType kDtype, bool kWide>
cudaError_t retention_step_launch(const RetentionStepParams& params, int cluster,
                                  cudaStream_t stream);

}  // namespace retnet::kernels::cuda
