// SPDX-License-Identifier: Apache-2.0
//
// The step of decoding as the host sees it: its parameters, which calls the kernel takes, and the sizes
// that follow. No CUDA header needed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/dtype.h"
#include "kernels/cuda/norm/plan.h"
#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {

// Strides count elements; the last dimension of every array is contiguous. K and V are key_dim and
// value_dim.
struct RetentionStepParams {
  int64_t batch = 0;   // B
  int64_t heads = 0;   // H
  int64_t states = 0;  // S; B without slots
  int64_t key_dim = 0;
  int64_t value_dim = 0;
  DType dtype = DType::kFloat32;  // of q, k, v, gate and out
  float scale = 1;
  const void* q_ptr = nullptr;  // [B, H, K]
  int64_t q_stride_b = 0;
  int64_t q_stride_h = 0;
  const void* k_ptr = nullptr;  // [B, H, K]
  int64_t k_stride_b = 0;
  int64_t k_stride_h = 0;
  const void* v_ptr = nullptr;  // [B, H, V]
  int64_t v_stride_b = 0;
  int64_t v_stride_h = 0;
  const float* log_decay_ptr = nullptr;  // [H]
  float* state_ptr = nullptr;            // [S, H, K, V]
  int64_t state_stride_s = 0;
  int64_t state_stride_h = 0;
  int64_t state_stride_k = 0;
  const int32_t* slots_ptr = nullptr;  // [B], or null: row b has state b

  // The rotation, or null: none.
  const float* frequencies_ptr = nullptr;  // [K / 2]
  const void* positions_ptr = nullptr;     // [B]
  int64_t positions_stride_b = 0;
  bool positions_64 = true;  // int64, else int32
  bool interleaved = true;   // pairs (2 i, 2 i + 1), else (i, i + K / 2)

  // Norm and gate, or null: neither.
  const void* gate_ptr = nullptr;  // [B, H, V]
  int64_t gate_stride_b = 0;
  int64_t gate_stride_h = 0;
  Norm norm = Norm::kLayer;
  float eps = 0;
  const void* weight_ptr = nullptr;  // [H, V], or [V] with stride_h 0, or null: ones
  int64_t weight_stride_h = 0;
  DType weight_dtype = DType::kFloat32;  // float32 or dtype
  const void* bias_ptr = nullptr;        // [H, V], or [V] with stride_h 0, or null: zeros
  int64_t bias_stride_h = 0;
  DType bias_dtype = DType::kFloat32;  // float32 or dtype

  void* out_ptr = nullptr;  // [B, H, V] contiguous
};

inline constexpr int kStepThreads = 256;
inline constexpr int kStepWarps = kStepThreads / 32;
inline constexpr int kStepUnit = 64;               // columns of V: 16 lanes of 4
inline constexpr int kStepRows = 2 * kStepWarps;   // rows of K that a block reads at once
inline constexpr int kStepBatch = 8;               // times that: loads in flight of a thread
inline constexpr int kStepGroup = 32;              // columns whose statistics a warp computes
inline constexpr int kStepMaxDim = 1024;           // of K and of V: shared memory
inline constexpr int kStepOccupancy = 2;           // blocks of a multiprocessor: 128 registers
inline constexpr int kStepMaxCluster = 8;          // the most that every device with clusters has
inline constexpr int kStepClusterCapability = 90;  // clusters exist from here on

constexpr int64_t step_units(int64_t value_dim) { return (value_dim + kStepUnit - 1) / kStepUnit; }
// Columns of a block where `cluster` blocks share a head.
constexpr int64_t step_columns(int64_t value_dim, int cluster) {
  return (step_units(value_dim) + cluster - 1) / cluster * kStepUnit;
}
// Dynamic shared memory: q and k, v, the warps' sums of each column, statistics of all groups.
constexpr size_t step_shared_bytes(int64_t key_dim, int64_t value_dim, int cluster) {
  const int64_t groups = step_units(value_dim) * kStepUnit / kStepGroup;
  return sizeof(float) * (2 * (key_dim + key_dim % 2) +
                          (1 + kStepWarps) * step_columns(value_dim, cluster) + 2 * groups);
}
static_assert(step_shared_bytes(kStepMaxDim, kStepMaxDim, 1) <= 48 << 10);

// Whether the kernel takes this call.
inline bool retention_step_supported(const RetentionStepParams& p) {
  constexpr int64_t kMaxBlocks = INT32_MAX / kStepMaxCluster;
  const auto affine_dtype = [&](DType dtype) {
    return dtype == DType::kFloat32 || dtype == p.dtype;
  };
  return p.batch >= 0 && p.heads >= 0 && (p.heads == 0 || p.batch <= kMaxBlocks / p.heads) &&
         p.key_dim >= 1 && p.key_dim <= kStepMaxDim && p.value_dim >= 1 &&
         p.value_dim <= kStepMaxDim && (p.weight_ptr == nullptr || affine_dtype(p.weight_dtype)) &&
         (p.bias_ptr == nullptr || affine_dtype(p.bias_dtype));
}

// Whether every row of the state starts and ends at a multiple of 16 bytes. The stride of a dimension
// of one element may be anything.
inline bool retention_step_wide(const RetentionStepParams& p) {
  return p.value_dim % 4 == 0 && reinterpret_cast<uintptr_t>(p.state_ptr) % 16 == 0 &&
         (p.states <= 1 || p.state_stride_s % 4 == 0) &&
         (p.heads <= 1 || p.state_stride_h % 4 == 0) &&
         (p.key_dim <= 1 || p.state_stride_k % 4 == 0);
}

// Whether `cluster` blocks can share a head so that each has columns.
constexpr bool step_cluster_fits(int64_t value_dim, int cluster) {
  return (cluster - 1) * step_columns(value_dim, cluster) < value_dim;
}

}  // namespace retnet::kernels::cuda
