// SPDX-License-Identifier: Apache-2.0
//
// Parameters of the decode step kernel, and what follows from them on the host: which calls it supports,
// with which accesses, and the sizes of its blocks. This file is plain C++ and needs no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/dtype.h"
#include "kernels/cuda/norm/plan.h"  // Norm

namespace retnet::kernels::cuda {

// Strides count elements; the last dimension of every array is contiguous.
struct DecodeStepParams {
  int64_t batch = 0;              // B
  int64_t heads = 0;              // H
  int64_t states = 0;             // S; B without slots
  int64_t head_dim_qk = 0;        // Dk
  int64_t head_dim_v = 0;         // Dv
  DType dtype = DType::kFloat32;  // of q, k, v, gate and out
  float scale = 1;
  const void* q_ptr = nullptr;  // [B, H, Dk]
  int64_t q_stride_b = 0;
  int64_t q_stride_h = 0;
  const void* k_ptr = nullptr;  // [B, H, Dk]
  int64_t k_stride_b = 0;
  int64_t k_stride_h = 0;
  const void* v_ptr = nullptr;  // [B, H, Dv]
  int64_t v_stride_b = 0;
  int64_t v_stride_h = 0;
  const float* log_decay_ptr = nullptr;  // [H]
  float* state_ptr = nullptr;            // [S, H, Dk, Dv]
  int64_t state_stride_s = 0;
  int64_t state_stride_h = 0;
  int64_t state_stride_k = 0;
  const int32_t* slots_ptr = nullptr;  // [B], or null: batch entry b has state b

  // The rotation. If frequencies_ptr is null, there is none.
  const float* frequencies_ptr = nullptr;  // [Dk / 2]
  const void* positions_ptr = nullptr;     // [B]
  int64_t positions_stride_b = 0;
  bool positions_64 = true;  // int64, else int32
  bool interleaved = true;   // pairs (2 i, 2 i + 1), else (i, i + Dk / 2)

  // Norm and gate. If gate_ptr is null, there is neither.
  const void* gate_ptr = nullptr;  // [B, H, Dv]
  int64_t gate_stride_b = 0;
  int64_t gate_stride_h = 0;
  Norm norm = Norm::kLayer;
  float eps = 0;
  const void* weight_ptr = nullptr;  // [H, Dv], or [Dv] with stride_h 0, or null: ones
  int64_t weight_stride_h = 0;
  DType weight_dtype = DType::kFloat32;  // float32 or dtype
  const void* bias_ptr = nullptr;        // [H, Dv], or [Dv] with stride_h 0, or null: zeros
  int64_t bias_stride_h = 0;
  DType bias_dtype = DType::kFloat32;  // float32 or dtype

  void* out_ptr = nullptr;  // [B, H, Dv] contiguous
};

inline constexpr int kDecodeStepThreads = 256;
inline constexpr int kDecodeStepWarps = kDecodeStepThreads / 32;
inline constexpr int kDecodeStepUnit = 64;  // columns of Dv: 16 lanes of 4
// The number of rows of the state that a block reads at once, and the number of loads in flight of a
// thread.
inline constexpr int kDecodeStepRows = 2 * kDecodeStepWarps;
inline constexpr int kDecodeStepLoads = 8;
inline constexpr int kDecodeStepGroup = 32;     // columns whose statistics a warp computes
inline constexpr int kDecodeStepMaxDim = 1024;  // of Dk and of Dv, which shared memory limits
inline constexpr int kDecodeStepOccupancy =
    2;  // blocks of a multiprocessor; a thread has 128 registers
inline constexpr int kDecodeStepMaxCluster = 8;  // the most that every device with clusters has
inline constexpr int kDecodeStepClusterCapability = 90;  // clusters exist from here on

constexpr int64_t decode_step_units(int64_t head_dim_v) {
  return (head_dim_v + kDecodeStepUnit - 1) / kDecodeStepUnit;
}
// Columns of a block if `cluster` blocks share a head.
constexpr int64_t decode_step_columns(int64_t head_dim_v, int cluster) {
  return (decode_step_units(head_dim_v) + cluster - 1) / cluster * kDecodeStepUnit;
}
// Dynamic shared memory holds q and k, v, the sums of each column by each warp, and the statistics of all
// groups.
constexpr size_t decode_step_shared_bytes(int64_t head_dim_qk, int64_t head_dim_v, int cluster) {
  const int64_t groups = decode_step_units(head_dim_v) * kDecodeStepUnit / kDecodeStepGroup;
  return sizeof(float) *
         (2 * (head_dim_qk + head_dim_qk % 2) +
          (1 + kDecodeStepWarps) * decode_step_columns(head_dim_v, cluster) + 2 * groups);
}
static_assert(decode_step_shared_bytes(kDecodeStepMaxDim, kDecodeStepMaxDim, 1) <= 48 << 10);

// Whether the kernel supports this call.
inline bool supports_decode_step(const DecodeStepParams& p) {
  constexpr int64_t kMaxBlocks = INT32_MAX / kDecodeStepMaxCluster;
  const auto affine_dtype = [&](DType dtype) {
    return dtype == DType::kFloat32 || dtype == p.dtype;
  };
  return p.batch >= 0 && p.heads >= 0 && (p.heads == 0 || p.batch <= kMaxBlocks / p.heads) &&
         p.head_dim_qk >= 1 && p.head_dim_qk <= kDecodeStepMaxDim && p.head_dim_v >= 1 &&
         p.head_dim_v <= kDecodeStepMaxDim &&
         (p.weight_ptr == nullptr || affine_dtype(p.weight_dtype)) &&
         (p.bias_ptr == nullptr || affine_dtype(p.bias_dtype));
}

// Whether every row of the state starts and ends at a multiple of 16 bytes. The stride of a dimension of
// one element is never used and may be anything.
inline bool decode_step_wide(const DecodeStepParams& p) {
  return p.head_dim_v % 4 == 0 && reinterpret_cast<uintptr_t>(p.state_ptr) % 16 == 0 &&
         (p.states <= 1 || p.state_stride_s % 4 == 0) &&
         (p.heads <= 1 || p.state_stride_h % 4 == 0) &&
         (p.head_dim_qk <= 1 || p.state_stride_k % 4 == 0);
}

// Whether `cluster` blocks can share a head so that each has columns.
constexpr bool decode_step_cluster_fits(int64_t head_dim_v, int cluster) {
  return (cluster - 1) * decode_step_columns(head_dim_v, cluster) < head_dim_v;
}

}  // namespace retnet::kernels::cuda
