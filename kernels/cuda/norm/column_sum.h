// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace retnet::kernels::cuda {

// out[c] = sum over r of in[r, c], in an order that depends on `rows` alone. No row gives zeros.
struct ColumnSumParams {
  const float* in_ptr = nullptr;  // [rows, columns] contiguous
  float* out_ptr = nullptr;       // [columns]
  int64_t rows = 0;
  int64_t columns = 0;
};

cudaError_t launch_column_sum(const ColumnSumParams& params, cudaStream_t stream);

}  // namespace retnet::kernels::cuda
