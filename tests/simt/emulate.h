// SPDX-License-Identifier: Apache-2.0
//
// Replaces kernels/cuda/prim/cuda.cuh and what that includes (cluster.cuh, tensor_core.cuh) if
// kernels run on the CPU (RETNET_EMULATE). It has the same names with the same meaning, and the parts
// of the CUDA language that kernels use. Nothing here touches the emulated memory itself. The runtime
// does, and the compiler instruments the loads and stores of the kernels.
#pragma once

#ifndef __SANITIZE_THREAD__
#error \
    "emulated kernels need the options of retnet_simt_kernel_flags: uninstrumented, nothing is checked"
#endif

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/dtype.h"
#include "simt/device.h"
#include "simt/numeric.h"

#define __global__
#define __launch_bounds__(...)
#define threadIdx (::retnet::simt::thread_index())
#define blockIdx (::retnet::simt::block_index())
#define blockDim (::retnet::simt::block_dim())
#define gridDim (::retnet::simt::grid_dim())

#define RETNET_DEVICE inline __attribute__((always_inline))
// Loops stay loops, so that UBSan sees an index past a register array at run time.
#define RETNET_UNROLL
#define RETNET_UNROLL_BY(count)
#define RETNET_SHARED(type, name, extents)                                        \
  static const char name##_key = 0;                                               \
  using name##_array = type extents;                                              \
  name##_array& name = *static_cast<name##_array*>(::retnet::simt::static_shared( \
      &name##_key, sizeof(name##_array), alignof(type) > 16 ? alignof(type) : 16))
#define RETNET_DYNAMIC_SHARED(name) \
  unsigned char* const name = static_cast<unsigned char*>(::retnet::simt::dynamic_shared())

namespace retnet::kernels::cuda::prim {

RETNET_DEVICE void sync_block() { simt::block_barrier(); }

RETNET_DEVICE float shuffle_xor(float value, int mask) {
  return std::bit_cast<float>(
      simt::shuffle(std::bit_cast<uint32_t>(value), mask, simt::Shuffle::kXor));
}

RETNET_DEVICE float exp(float x) { return std::exp(x); }
RETNET_DEVICE float rsqrt(float x) { return 1.0f / std::sqrt(x); }
RETNET_DEVICE double fma(double x, double y, double z) { return std::fma(x, y, z); }
RETNET_DEVICE double rint(double x) { return std::nearbyint(x); }
RETNET_DEVICE float reciprocal(float x) {
  // Subnormal operands and results become zeros, as in the instruction.
  const float magnitude = std::fabs(x);
  if (magnitude > 0x1p126f) return std::copysign(0.0f, x);
  return 1.0f / (magnitude < 0x1p-126f ? std::copysign(0.0f, x) : x);
}

RETNET_DEVICE void load_readonly(uint32_t (&dst)[2], const void* src) { simt::load(dst, src, 8); }
RETNET_DEVICE void load_readonly(uint32_t (&dst)[4], const void* src) { simt::load(dst, src, 16); }
RETNET_DEVICE void load(uint32_t (&dst)[2], const void* src) { simt::load(dst, src, 8); }
RETNET_DEVICE void load(uint32_t (&dst)[4], const void* src) { simt::load(dst, src, 16); }
RETNET_DEVICE void store(void* dst, const uint32_t (&src)[2]) { simt::store(dst, src, 8); }
RETNET_DEVICE void store(void* dst, const uint32_t (&src)[4]) { simt::store(dst, src, 16); }

template <DType kDtype>
RETNET_DEVICE void unpack_pair(uint32_t word, float& lower, float& upper) {
  static_assert(kDtype != DType::kFloat32, "fp32 elements are words, not pairs");
  constexpr auto kToFloat =
      kDtype == DType::kBFloat16 ? simt::bfloat16_to_float : simt::float16_to_float;
  lower = kToFloat(static_cast<uint16_t>(word));
  upper = kToFloat(static_cast<uint16_t>(word >> 16));
}
template <DType kDtype>
RETNET_DEVICE uint32_t pack_pair(float lower, float upper) {
  static_assert(kDtype != DType::kFloat32, "fp32 elements are words, not pairs");
  constexpr auto kFromFloat =
      kDtype == DType::kBFloat16 ? simt::float_to_bfloat16 : simt::float_to_float16;
  return kFromFloat(lower) | static_cast<uint32_t>(kFromFloat(upper)) << 16;
}
RETNET_DEVICE float word_to_float(uint32_t word) { return std::bit_cast<float>(word); }
RETNET_DEVICE uint32_t float_to_word(float value) { return std::bit_cast<uint32_t>(value); }

// kernels/cuda/prim/tensor_core.cuh

inline constexpr bool kHasAsyncMma = true;

RETNET_DEVICE void sync_warp() { simt::warp_barrier(); }
RETNET_DEVICE void bar_sync(int id, int threads) { simt::named_barrier(id, threads, true); }
RETNET_DEVICE void bar_arrive(int id, int threads) { simt::named_barrier(id, threads, false); }
RETNET_DEVICE float shuffle(float value, int lane) {
  return std::bit_cast<float>(
      simt::shuffle(std::bit_cast<uint32_t>(value), lane, simt::Shuffle::kIndex));
}

RETNET_DEVICE uint32_t smem_u32(const void* ptr) { return simt::shared_address(ptr); }
template <int kBytes>
RETNET_DEVICE void cp_async(uint32_t dst, const void* src, int bytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  simt::async_copy(dst, src, kBytes, bytes);
}
RETNET_DEVICE void cp_async_commit() { simt::async_commit(); }
template <int kGroups>
RETNET_DEVICE void cp_async_wait() {
  static_assert(kGroups >= 0);
  simt::async_wait(kGroups);
}

RETNET_DEVICE void ldmatrix_x1(uint32_t (&r)[1], uint32_t address) {
  simt::load_matrices(r, address, 1, false);
}
RETNET_DEVICE void ldmatrix_x2(uint32_t (&r)[2], uint32_t address) {
  simt::load_matrices(r, address, 2, false);
}
RETNET_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
  simt::load_matrices(r, address, 4, false);
}
RETNET_DEVICE void ldmatrix_x1_t(uint32_t (&r)[1], uint32_t address) {
  simt::load_matrices(r, address, 1, true);
}
RETNET_DEVICE void ldmatrix_x2_t(uint32_t (&r)[2], uint32_t address) {
  simt::load_matrices(r, address, 2, true);
}
RETNET_DEVICE void ldmatrix_x4_t(uint32_t (&r)[4], uint32_t address) {
  simt::load_matrices(r, address, 4, true);
}

template <DType kDtype>
RETNET_DEVICE void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(kDtype != DType::kFloat32, "operands are bf16 or fp16");
  const uint32_t b[2] = {b0, b1};
  simt::multiply_accumulate(
      d, a, b, kDtype == DType::kBFloat16 ? simt::Half::kBFloat16 : simt::Half::kFloat16);
}

template <DType kDtype>
RETNET_DEVICE uint32_t saturate_pair(uint32_t word) {
  if constexpr (kDtype == DType::kFloat16) {
    if ((word & 0x7fff) == 0x7c00) word -= 1;
    if ((word & 0x7fff0000) == 0x7c000000) word -= 0x10000;
  }
  return word;
}

RETNET_DEVICE float ex2(float x) {
  const float y = std::exp2(x);
  return y < 0x1p-126f ? 0.0f : y;
}
RETNET_DEVICE float opaque(float x) { return x; }
RETNET_DEVICE uint32_t opaque(uint32_t x) { return x; }
RETNET_DEVICE float expm1(float x) { return std::expm1(x); }

// kernels/cuda/prim/cluster.cuh

inline constexpr bool kHasClusters = true;

RETNET_DEVICE int cluster_rank() { return simt::cluster_rank(); }
RETNET_DEVICE void sync_cluster() { simt::cluster_barrier(); }
RETNET_DEVICE void store_cluster(float* shared, int rank, float value) {
  simt::cluster_store(shared, rank, value);
}

}  // namespace retnet::kernels::cuda::prim
