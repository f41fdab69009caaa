// SPDX-License-Identifier: Apache-2.0
//
// What kernels use of CUDA on a GPU. Every name below, and threadIdx, blockIdx, gridDim, __global__ and
// __launch_bounds__, is the surface that the SIMT emulator has to supply in place of this file (prim.cuh).
// Kernels use no other intrinsic, attribute or PTX.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/dtype.h"

#define RETNET_DEVICE __device__ __forceinline__
#define RETNET_UNROLL _Pragma("unroll")
#define RETNET_PRAGMA(text) _Pragma(#text)
#define RETNET_UNROLL_BY(count) RETNET_PRAGMA(unroll count)
// Declares a static shared array, as in RETNET_SHARED(float, sSum, [2][32]). Its start is aligned for
// 16-byte accesses.
#define RETNET_SHARED(type, name, extents) __shared__ __align__(16) type name extents

namespace retnet::kernels::cuda::prim {

// Waits for all threads of the block. What they have written to shared and global memory is then visible to
// all.
RETNET_DEVICE void sync_block() { __syncthreads(); }

// Returns the value of lane (lane ^ mask). All 32 lanes of the warp must call.
RETNET_DEVICE float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

RETNET_DEVICE float exp(float x) { return expf(x); }
RETNET_DEVICE float rsqrt(float x) { return rsqrtf(x); }
// fma returns x y + z, rounded once. rint returns the nearest integer, of two the even one.
RETNET_DEVICE double fma(double x, double y, double z) { return ::fma(x, y, z); }
RETNET_DEVICE double rint(double x) { return ::rint(x); }
// Returns 1 / x to 1 ulp, or 0 if |x| is infinite or above 2^126.
RETNET_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Accesses of 8 and 16 bytes. The address must be a multiple of the size. load_readonly reads global memory
// that no thread writes while the kernel runs. load and store access global or shared memory.
RETNET_DEVICE void load_readonly(uint32_t (&dst)[2], const void* src) {
  const uint2 v = __ldg(static_cast<const uint2*>(src));
  dst[0] = v.x, dst[1] = v.y;
}
RETNET_DEVICE void load_readonly(uint32_t (&dst)[4], const void* src) {
  const uint4 v = __ldg(static_cast<const uint4*>(src));
  dst[0] = v.x, dst[1] = v.y, dst[2] = v.z, dst[3] = v.w;
}
RETNET_DEVICE void load(uint32_t (&dst)[2], const void* src) {
  const uint2 v = *static_cast<const uint2*>(src);
  dst[0] = v.x, dst[1] = v.y;
}
RETNET_DEVICE void load(uint32_t (&dst)[4], const void* src) {
  const uint4 v = *static_cast<const uint4*>(src);
  dst[0] = v.x, dst[1] = v.y, dst[2] = v.z, dst[3] = v.w;
}
RETNET_DEVICE void store(void* dst, const uint32_t (&src)[2]) {
  *static_cast<uint2*>(dst) = make_uint2(src[0], src[1]);
}
RETNET_DEVICE void store(void* dst, const uint32_t (&src)[4]) {
  *static_cast<uint4*>(dst) = make_uint4(src[0], src[1], src[2], src[3]);
}

// Convert the two 16-bit elements of a word (the lower address is in the lower half) to float32, and two float32
// values to a word, rounded to nearest even.
template <DType kDtype>
RETNET_DEVICE void unpack_pair(uint32_t word, float& lower, float& upper) {
  if constexpr (kDtype == DType::kBFloat16) {
    lower = __uint_as_float(word << 16);
    upper = __uint_as_float(word & 0xffff0000u);
  } else {
    static_assert(kDtype == DType::kFloat16, "float32 elements are words, not pairs");
    lower = __half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffffu)));
    upper = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
  }
}
template <DType kDtype>
RETNET_DEVICE uint32_t pack_pair(float lower, float upper) {
  if constexpr (kDtype == DType::kBFloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(lower, upper);
    return *reinterpret_cast<const uint32_t*>(&pair);  // the lower element comes first
  } else {
    static_assert(kDtype == DType::kFloat16, "float32 elements are words, not pairs");
    const __half2 pair = __floats2half2_rn(lower, upper);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}
RETNET_DEVICE float word_to_float(uint32_t word) { return __uint_as_float(word); }
RETNET_DEVICE uint32_t float_to_word(float value) { return __float_as_uint(value); }

}  // namespace retnet::kernels::cuda::prim

#include "kernels/cuda/prim/cluster.cuh"
#include "kernels/cuda/prim/tensor_core.cuh"
