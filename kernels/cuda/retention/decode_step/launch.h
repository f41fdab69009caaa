// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/retention/decode_step/plan.h"

namespace retnet::kernels::cuda {

// A decode step of each batch entry b and head h, in float32 with the state in place:
//
//     q, k   = rotated by the angles position * frequency
//     state <- gamma state + k^T v
//     out    = norm(scale q state) * weight + bias, times gate * sigmoid(gate)
//
// `cluster` blocks share a head (decode_step_cluster), or one if the code that runs was not compiled for
// clusters. Batch entries whose slot is negative, or not below S, leave the states alone and get zeros. The
// launch is asynchronous on `stream`. The device of the pointers must be current. Returns
// cudaErrorNotSupported if supports_decode_step(params) is false. Launches nothing for an empty shape.
cudaError_t launch_decode_step(const DecodeStepParams& params, int cluster, cudaStream_t stream);

// Blocks that share a head when launch_decode_step is called with these arguments on the current device:
// `cluster`, or 1 because the device runs code that was compiled for an older one.
int decode_step_launched_cluster(const DecodeStepParams& params, int cluster);

// Launches a supported call that is not empty. Each dtype and width is instantiated in a file of its own
// (instances.cmake). If `kWide`, accesses to the state have 16 bytes (decode_step_wide), else 4.
template <DType kDtype, bool kWide>
cudaError_t decode_step_launch(const DecodeStepParams& params, int cluster, cudaStream_t stream);
template <DType kDtype, bool kWide>
int decode_step_code_cluster(int cluster);

}  // namespace retnet::kernels::cuda
