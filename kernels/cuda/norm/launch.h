// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/norm/plan.h"

namespace retnet::kernels::cuda {

// Per row (n, h) of V elements, with the statistics over V, in fp32:
//
//     normed = (x - mean) * rsqrt(var + eps)                  (kLayer; var biased)
//     normed = x * rsqrt(mean(x^2) + eps)                     (kRms)
//     out    = (normed * weight + bias) * gate * sigmoid(gate)
//
// Asynchronous on `stream`; the device of the pointers must be current. cudaErrorNotSupported where
// gated_group_norm_supported(params) is false; nothing is launched for an empty shape.
cudaError_t launch_gated_group_norm(const GatedGroupNormParams& params, cudaStream_t stream);

// Gradients of the above that are asked for (pointers not null), each overwritten. The same bits
// from call to call.
cudaError_t launch_gated_group_norm_backward(const GatedGroupNormBackwardParams& params,
                                             cudaStream_t stream);

}  // namespace retnet::kernels::cuda
