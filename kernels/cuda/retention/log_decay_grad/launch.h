// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/retention/log_decay_grad/plan.h"

namespace retnet::kernels::cuda {

// The gradient of log_decay of retention, in parts: gradients.log_decay_ptr [N, H, slices] receives what
// each slice of each sequence and head adds to it, of `plan` (log_decay_plan of the same call, without
// a refusal). Reads gradients.out and final_state_ptr, and of `forward` q, k and v as readout, key and
// value, log_decay, cu_seqlens and the initial state. Asynchronous on `stream`; the device of the
// pointers must be current. cudaErrorInvalidValue where an operand is not aligned (chunkwise_aligned);
// the launch's error where the device lacks the shared memory.
cudaError_t launch_log_decay(const ChunkwiseParams& forward, const ChunkwiseGradients& gradients,
                             const LogDecayPlan& plan, cudaStream_t stream);

}  // namespace retnet::kernels::cuda
