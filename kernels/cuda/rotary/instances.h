// SPDX-License-Identifier: Apache-2.0
//
// The typed launcher, each pair of kDtype and kVector instantiated in a file of its own. `params` has
// been found supported and not empty.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/rotary/plan.h"

namespace retnet::kernels::cuda {

template <DType kDtype, int kVector>
cudaError_t rotary_launch(const RotaryParams& params, cudaStream_t stream);

}  // namespace retnet::kernels::cuda
