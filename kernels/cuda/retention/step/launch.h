// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/retention/step/cost_model.h"

namespace retnet::kernels::cuda {

// One token of decoding, per row b and head h, in fp32 with the state in place:
//
//     q, k   = rotated by the angles position * frequency
//     state <- gamma state + k^T v
//     out    = norm(scale q state) * weight + bias, times gate * sigmoid(gate)
//
// `cluster` blocks share a head (retention_step_cluster), or one where the code that runs was not
// compiled for clusters. Rows whose slot is negative or not below S leave the states alone and give
// zeros. Asynchronous on `stream`; the device of the pointers must be current. cudaErrorNotSupported
// where retention_step_supported(params) is false; nothing is launched for an empty shape.
cudaError_t launch_retention_step(const RetentionStepParams& params, int cluster,
                                  cudaStream_t stream);

}  // namespace retnet::kernels::cuda
