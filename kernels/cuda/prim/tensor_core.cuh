// SPDX-License-Identifier: Apache-2.0
//
// What matrix kernels use besides prim/cuda.cuh, which includes this file: warp and named barriers,
// cp.async, ldmatrix and mma, from sm_80 on. It is part of the surface that the SIMT emulator supplies.
//
// Shared memory is addressed by smem_u32(pointer) plus bytes. Only barriers order accesses by cp.async and
// ldmatrix with others. An ldmatrix need not see the writes of its own thread before a sync_warp, because
// each lane receives what the addresses of other lanes select.
#pragma once

#include "kernels/cuda/prim/cuda.cuh"

// The dynamic shared memory of the block, of the size that `launch` was given.
#define RETNET_DYNAMIC_SHARED(name) extern __shared__ __align__(1024) unsigned char name[]

namespace retnet::kernels::cuda::prim {

// True if the architecture supports these primitives. Otherwise kernels compile to nothing.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
inline constexpr bool kHasAsyncMma = true;
#else
inline constexpr bool kHasAsyncMma = false;
#endif

// Like sync_block, among the 32 lanes of a warp. All must call.
RETNET_DEVICE void sync_warp() { __syncwarp(); }

// Barrier `id` (1 to 15; sync_block uses 0) of `threads` threads, a multiple of 32. bar_sync waits until
// that many have called either function. bar_arrive does not wait. Warps take part as a whole.
RETNET_DEVICE void bar_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
RETNET_DEVICE void bar_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Returns the value of lane `lane`. All 32 lanes of the warp must call.
RETNET_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

RETNET_DEVICE uint32_t smem_u32(const void* ptr) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(ptr));
}

// Starts a copy of kBytes from global to shared memory. Only the first `bytes` are read, and the rest are
// zeros. Both addresses are multiples of kBytes. If `bytes` is 0, `src` may be any such address. The
// 16-byte copy bypasses the L1 cache.
template <int kBytes>
RETNET_DEVICE void cp_async(uint32_t dst, const void* src, int bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(dst), "l"(src), "n"(kBytes),
                 "r"(bytes)
                 : "memory");
  }
}
// cp_async_commit makes a group of the copies that this thread has started since its last commit.
// cp_async_wait waits until all but the kGroups newest of its groups are done. Other threads may read them
// after a barrier.
RETNET_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kGroups>
RETNET_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Load matrices of 8 x 8 16-bit elements. Lane 8 m + i gives the 16-byte aligned address of row i of matrix
// m. r[m] of lane l becomes the elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4, or of column l / 4 with
// _t. All 32 lanes must call.
RETNET_DEVICE void ldmatrix_x1(uint32_t (&r)[1], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address));
}
RETNET_DEVICE void ldmatrix_x2(uint32_t (&r)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address));
}
RETNET_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}
RETNET_DEVICE void ldmatrix_x1_t(uint32_t (&r)[1], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
               : "=r"(r[0])
               : "r"(address));
}
RETNET_DEVICE void ldmatrix_x2_t(uint32_t (&r)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address));
}
RETNET_DEVICE void ldmatrix_x4_t(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address));
}

// A warp computes d[16, 8] += a[16, 16] b[16, 8] in float32. With g = lane / 4 and t = 2 (lane % 4):
//   a[0..3]  row g, g + 8, g, g + 8     columns t, t + 1 (0 and 1) or t + 8, t + 9 (2 and 3)
//   b0, b1   column g                   rows t, t + 1 or t + 8, t + 9
//   d[0..3]  row g, g, g + 8, g + 8     columns t, t + 1, t, t + 1
// ldmatrix_x4 gives a from rows; ldmatrix_x2 gives b from an array [8, 16], _x2_t from [16, 8].
template <DType kDtype>
RETNET_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kDtype == DType::kBFloat16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    static_assert(kDtype == DType::kFloat16, "operands are bfloat16 or float16");
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// In float16, infinite elements of a pair become the largest finite number of their sign. bfloat16 has the range
// of float32 and is left alone.
template <DType kDtype>
RETNET_DEVICE uint32_t saturate_pair(uint32_t word) {
  if constexpr (kDtype == DType::kFloat16) {
    asm("min.NaN.f16x2 %0, %0, %1;" : "+r"(word) : "r"(0x7bff7bffu));
    asm("max.NaN.f16x2 %0, %0, %1;" : "+r"(word) : "r"(0xfbfffbffu));
  }
  return word;
}

// Returns 2^x to 2 ulp. Subnormal results are zeros.
RETNET_DEVICE float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Returns x, but the compiler no longer knows where it comes from. What depends on it is then computed here
// and not ahead of a loop, where it would hold registers.
RETNET_DEVICE float opaque(float x) {
  asm volatile("" : "+f"(x));
  return x;
}
RETNET_DEVICE uint32_t opaque(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}
RETNET_DEVICE float expm1(float x) { return expm1f(x); }

}  // namespace retnet::kernels::cuda::prim
