// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/retention/log_decay_grad/plan.h"

namespace retnet::kernels::cuda {

// The gradient of log_decay of retention, in parts: gradients.log_decay_grad_ptr [N, H, slices] receives
// what each slice of each sequence and head adds to it, as `plan` says (log_decay_grad_plan of the same
// call, without an unsupported_reason). Asynchronous on `stream`; the device of the pointers must be
// current. Returns cudaErrorInvalidValue if an operand is not aligned (chunkwise_aligned), and the launch's
// error if the device lacks the shared memory.
cudaError_t launch_log_decay_grad(const LogDecayGradParams& params, const LogDecayGradPlan& plan,
                                  cudaStream_t stream);

// One launch of the kernel, with a block for each slice of each head of each sequence. Each dtype and tile
// is instantiated in a file of its own (instances.cmake).
template <DType kDtype, int kTile>
cudaError_t log_decay_grad_launch(const LogDecayGradParams& params, int64_t slices,
                                  cudaStream_t stream);

}  // namespace retnet::kernels::cuda
