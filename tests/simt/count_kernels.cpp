// SPDX-License-Identifier: Apache-2.0
#include "simt/count_kernels.h"

#include "kernels/cuda/prim/prim.cuh"

namespace retnet::simt {
namespace {

namespace prim = kernels::cuda::prim;
using kernels::cuda::DType;

__global__ void shared_stride_kernel(int stride, float* out) {
  RETNET_SHARED(float, sX, [32 * 32]);
  const int lane = threadIdx.x;
  sX[lane * stride] = lane;
  prim::sync_warp();
  out[lane] = sX[lane * stride];
}

__global__ void matrix_rows_kernel(bool swizzle, float* out) {
  RETNET_DYNAMIC_SHARED(smem);
  const int lane = threadIdx.x;
  // Returns the 16-byte chunk `chunk` of row `row`. Swizzled rows start in different banks.
  const auto offset = [&](int row, int chunk) {
    return static_cast<uint32_t>(row * 128 + (swizzle ? chunk ^ row : chunk) * 16);
  };
  for (int i = lane; i < 8 * 8; i += 32) {
    const auto id = static_cast<uint32_t>(i);
    const uint32_t words[4] = {id, id, id, id};
    prim::store(smem + offset(i / 8, i % 8), words);
  }
  prim::sync_warp();
  uint32_t r[4];
  prim::ldmatrix_x4(r, prim::smem_u32(smem) + offset(lane % 8, lane / 8));
  out[lane] = static_cast<float>(r[0] + 100 * r[3]);
}

__global__ void global_stride_kernel(int stride, const float* in, float* out) {
  out[threadIdx.x * stride] = in[threadIdx.x * stride];
}

__global__ void global_stride_async_kernel(int stride, const float* in, float* out) {
  RETNET_SHARED(float, sX, [32]);
  const int lane = threadIdx.x;
  prim::cp_async<4>(prim::smem_u32(&sX[lane]), in + lane * stride, 4);
  prim::cp_async_commit();
  prim::cp_async_wait<0>();
  out[lane * stride] = sX[lane];
}

template <DType kDtype, bool kTransposed>
__global__ void multiply_kernel(const uint16_t* a, const uint16_t* b, float* out) {
  RETNET_SHARED(uint16_t, sA, [16][16]);
  RETNET_SHARED(uint16_t, sB, [16 * 8]);
  for (int i = threadIdx.x; i < 16 * 16; i += blockDim.x) sA[i / 16][i % 16] = a[i];
  for (int i = threadIdx.x; i < 16 * 8; i += blockDim.x) sB[i] = b[i];
  prim::sync_block();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) {
    if (w == warp) {
      uint32_t rA[4], rB[2];
      prim::ldmatrix_x4(rA, prim::smem_u32(&sA[lane % 16][lane / 16 * 8]));
      if constexpr (kTransposed) {
        prim::ldmatrix_x2(rB, prim::smem_u32(sB) + (lane % 8 * 16 + lane / 8 % 2 * 8) * 2);
      } else {
        prim::ldmatrix_x2_t(rB, prim::smem_u32(sB) + lane % 16 * 8 * 2);
      }
      float d[4] = {};
      prim::mma<kDtype>(d, rA, rB[0], rB[1]);
      for (int i = 0; i < 4; ++i) {
        out[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
      }
    }
    prim::sync_block();
  }
}

__global__ void coordinates_kernel(uint32_t* out) {
  const uint32_t block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  out[block * blockDim.x + threadIdx.x] =
      blockIdx.x | blockIdx.y << 4 | blockIdx.z << 8 | threadIdx.x << 12 | gridDim.y << 24;
}

template <DType kDtype>
cudaError_t multiply(bool b_transposed, int warps, const uint16_t* a, const uint16_t* b, float* d) {
  const auto kernel =
      b_transposed ? &multiply_kernel<kDtype, true> : &multiply_kernel<kDtype, false>;
  return prim::launch(kernel, 1u, warps * 32u, nullptr, a, b, d);
}

}  // namespace

cudaError_t launch_shared_stride(int stride, float* out) {
  return prim::launch(&shared_stride_kernel, 1u, 32u, nullptr, stride, out);
}

cudaError_t launch_matrix_rows(bool swizzle, float* out) {
  return prim::launch(&matrix_rows_kernel, dim3(1), 32u, 1024, nullptr, swizzle, out);
}

cudaError_t launch_global_stride(int stride, bool async, const float* in, float* out) {
  return prim::launch(async ? &global_stride_async_kernel : &global_stride_kernel, 1u, 32u, nullptr,
                      stride, in, out);
}

cudaError_t launch_multiply(DType dtype, bool b_transposed, int warps, const uint16_t* a,
                            const uint16_t* b, float* d) {
  return dtype == DType::kBFloat16 ? multiply<DType::kBFloat16>(b_transposed, warps, a, b, d)
                                   : multiply<DType::kFloat16>(b_transposed, warps, a, b, d);
}

cudaError_t launch_coordinates(uint32_t* out) {
  return prim::launch(&coordinates_kernel, dim3(2, 3, 2), 64u, 0, nullptr, out);
}

}  // namespace retnet::simt
