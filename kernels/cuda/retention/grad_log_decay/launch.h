// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/retention/grad_log_decay/plan.h"

namespace retnet::kernels::cuda {

// Computes the gradient of log_decay of retention in parts. gradients.grad_log_decay_ptr [N, H, slices]
// receives what each slice of each sequence and head adds to it, as `plan` says (grad_log_decay_plan of the
// same call, without an unsupported_reason). The launch is asynchronous on `stream`. The device of the
// pointers must be current. Returns cudaErrorInvalidValue if an operand is not aligned (chunkwise_aligned),
// and the error of the launch if the device lacks the shared memory.
cudaError_t launch_grad_log_decay(const GradLogDecayParams& params, const GradLogDecayPlan& plan,
                                  cudaStream_t stream);

// One launch of the kernel, with a block for each slice of each head of each sequence. Each dtype and tile
// is instantiated in a file of its own (instances.cmake).
template <DType kDtype, int kTile>
cudaError_t grad_log_decay_launch(const GradLogDecayParams& params, int64_t slices,
                                  cudaStream_t stream);

}  // namespace retnet::kernels::cuda
