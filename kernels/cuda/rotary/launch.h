// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/rotary/plan.h"

namespace retnet::kernels::cuda {

// Turns the pairs of channels (a, b) of q and k by angle = position * frequency:
//
//     out[a] = x[a] cos(angle) - x[b] sin(angle)
//     out[b] = x[a] sin(angle) + x[b] cos(angle)
//
// or by -angle: its gradient. Asynchronous on `stream`; the device of the pointers must be current.
// cudaErrorNotSupported where rotary_supported(params) is false; nothing is launched for an empty
// shape or without an operand.
cudaError_t launch_rotary(const RotaryParams& params, cudaStream_t stream);

}  // namespace retnet::kernels::cuda
