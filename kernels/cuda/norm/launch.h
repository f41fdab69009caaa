// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/norm/plan.h"

namespace retnet::kernels::cuda {

// For each token n and head h, with the statistics over Dv, in float32:
//
//     normed = (x - mean) * rsqrt(var + eps)                  (kLayer; var biased)
//     normed = x * rsqrt(mean(x^2) + eps)                     (kRms)
//     out    = (normed * weight + bias) * gate * sigmoid(gate)
//
// The launch is asynchronous on `stream`. The device of the pointers must be current. Returns
// cudaErrorNotSupported if supports_gated_group_norm(params) is false. Launches nothing for an empty shape.
cudaError_t launch_gated_group_norm(const GatedGroupNormParams& params, cudaStream_t stream);

// Computes those gradients of the above whose pointers are not null. Each is overwritten. Each call gives
// the same bits.
cudaError_t launch_gated_group_norm_backward(const GatedGroupNormBackwardParams& params,
                                             cudaStream_t stream);

// The launches that these consist of.

// They take supported calls that are not empty. Each dtype and elements per access
// (gated_group_norm_vector) is instantiated in a file of its own (instances.cmake).
template <DType kDtype, int kVector>
cudaError_t gated_group_norm_forward_launch(const GatedGroupNormParams& params,
                                            cudaStream_t stream);
template <DType kDtype, int kVector>
cudaError_t gated_group_norm_backward_launch(const GatedGroupNormBackwardParams& params,
                                             cudaStream_t stream);

cudaError_t launch_column_sum(const ColumnSumParams& params, cudaStream_t stream);

}  // namespace retnet::kernels::cuda
