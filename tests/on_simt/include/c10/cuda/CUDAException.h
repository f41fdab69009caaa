// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

namespace c10::cuda {

/// Throws unless it is cudaSuccess, and forgets it as the last error.
void check(cudaError_t error);

}  // namespace c10::cuda

#define C10_CUDA_CHECK(expression) ::c10::cuda::check(expression)
