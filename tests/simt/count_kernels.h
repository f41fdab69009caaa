// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/dtype.h"

namespace retnet::simt {

// One warp stores its 32 floats at sX[lane * stride] and loads them back.
cudaError_t launch_shared_stride(int stride, float* out);

// One warp: 16-byte stores of an 8 x 64 tile of 16-bit elements (rows of 128 bytes), then an
// ldmatrix_x4 of its left half, with or without swizzled rows.
cudaError_t launch_matrix_rows(bool swizzle, float* out);

// One warp copies n floats, lane l those at l * stride, by plain loads or by cp.async.
cudaError_t launch_global_stride(int stride, bool async, const float* in, float* out);

// One block of `warps` warps: d[16, 8] = a[16, 16] b[16, 8] by each warp in turn, with a barrier
// between. `b_transposed`: b lies as [8, 16].
cudaError_t launch_multiply(kernels::cuda::DType dtype, bool b_transposed, int warps,
                            const uint16_t* a, const uint16_t* b, float* d);

// out[t] = thread and block coordinates of a launch of a 2 x 3 x 2 grid of 64 threads, packed.
cudaError_t launch_coordinates(uint32_t* out);

}  // namespace retnet::simt
