// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {

// Retention in the chunkwise form, out and final state, as `plan` (chunkwise_plan of the same
// params, without a refusal) has it. Asynchronous on `stream`; the device of the pointers must be
// current. cudaErrorInvalidValue where an operand is not aligned (chunkwise_aligned) or the
// workspace is missing; the launch's error where the device lacks the shared memory.
cudaError_t launch_chunkwise(const ChunkwiseParams& params, const ChunkwisePlan& plan,
                             cudaStream_t stream);

}  // namespace retnet::kernels::cuda
