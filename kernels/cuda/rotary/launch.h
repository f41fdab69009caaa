// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/rotary/plan.h"

namespace retnet::kernels::cuda {

// Rotates the pairs of channels (a, b) of q and k by angle = position * frequency:
//
//     out[a] = x[a] cos(angle) - x[b] sin(angle)
//     out[b] = x[a] sin(angle) + x[b] cos(angle)
//
// or by -angle, which is the gradient. The launch is asynchronous on `stream`. The device of the pointers
// must be current. Returns cudaErrorNotSupported if supports_rotary(params) is false. Launches nothing for
// an empty shape or without an operand.
cudaError_t launch_rotary(const RotaryParams& params, cudaStream_t stream);

// Launches a supported call that is not empty. Each dtype and number of elements per access (rotary_vector)
// is instantiated in a file of its own (instances.cmake).
template <DType kDtype, int kVector>
cudaError_t rotary_launch(const RotaryParams& params, cudaStream_t stream);

}  // namespace retnet::kernels::cuda
