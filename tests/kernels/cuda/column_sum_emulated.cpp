// SPDX-License-Identifier: Apache-2.0
//
// This includes the source file of the kernel, because the kernel has internal linkage.
#include "column_sum_emulated.h"

#include "kernels/cuda/norm/column_sum.cu"

namespace retnet::kernels::cuda {

cudaError_t launch_column_sum_on(unsigned blocks, const ColumnSumParams& params) {
  return prim::launch(column_sum_kernel, blocks, kColumnSumWarps * 32, nullptr, params);
}

}  // namespace retnet::kernels::cuda
