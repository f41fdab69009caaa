// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/dtype.h"

namespace retnet::simt {

// One warp stores its 32 floats at sX[lane * stride] and loads them back.
cudaError_t launch_shared_stride(int stride, float* out);

// One warp makes 16-byte stores of an 8 x 64 tile of 16-bit elements (rows of 128 bytes). It then
// makes an ldmatrix_x4 of its left half, with or without swizzled rows.
cudaError_t launch_matrix_rows(bool swizzle, float* out);

// One warp copies n floats by plain loads or by cp.async. Lane l copies those at l * stride.
cudaError_t launch_global_stride(int stride, bool async, const float* in, float* out);

// In one block of `warps` warps, each warp in turn computes d[16, 8] = a[16, 16] b[16, 8], with a
// barrier in between. If `b_transposed`, b is stored as [8, 16].
cudaError_t launch_multiply(kernels::cuda::DType dtype, bool b_transposed, int warps,
                            const uint16_t* a, const uint16_t* b, float* d);

// out[t] holds the packed thread and block coordinates of a launch of a 2 x 3 x 2 grid of 64 threads.
cudaError_t launch_coordinates(uint32_t* out);

}  // namespace retnet::simt
