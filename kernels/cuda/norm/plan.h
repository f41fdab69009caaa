// SPDX-License-Identifier: Apache-2.0
//
// Parameters of the gated group norm kernels and of column_sum, the tile table, and what follows from them
// on the host: which calls the kernels support, with which accesses, and how much workspace the backward
// needs. This file is plain C++ and needs no CUDA header.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/dtype.h"

namespace retnet::kernels::cuda {

enum class Norm : int { kLayer, kRms };

// Strides count elements; the last dimension of every array is contiguous.
struct GatedGroupNormInputs {
  int64_t tokens = 0;             // N: all leading dimensions as one
  int64_t heads = 0;              // H
  int64_t head_dim_v = 0;         // Dv
  DType dtype = DType::kFloat32;  // of x, of gate, and of what is written in their shape
  Norm norm = Norm::kLayer;
  float eps = 0;
  const void* x_ptr = nullptr;  // [N, H, Dv]
  int64_t x_stride_n = 0;
  int64_t x_stride_h = 0;
  const void* gate_ptr = nullptr;  // [N, H, Dv], or null: no gate
  int64_t gate_stride_n = 0;
  int64_t gate_stride_h = 0;
  const void* weight_ptr = nullptr;  // [H, Dv], or [Dv] with stride_h 0, or null: ones
  int64_t weight_stride_h = 0;
  DType weight_dtype = DType::kFloat32;  // float32 or dtype
  const void* bias_ptr = nullptr;        // [H, Dv], or [Dv] with stride_h 0, or null: zeros
  int64_t bias_stride_h = 0;
  DType bias_dtype = DType::kFloat32;  // float32 or dtype
};

struct GatedGroupNormParams : GatedGroupNormInputs {
  void* out_ptr = nullptr;  // [N, H, Dv] contiguous
};

// A gradient that is null is not computed.
struct GatedGroupNormBackwardParams : GatedGroupNormInputs {
  const void* grad_out_ptr = nullptr;  // [N, H, Dv], dtype
  int64_t grad_out_stride_n = 0;
  int64_t grad_out_stride_h = 0;
  void* grad_x_ptr = nullptr;        // [N, H, Dv] contiguous
  void* grad_gate_ptr = nullptr;     // [N, H, Dv] contiguous; only with a gate
  float* grad_weight_ptr = nullptr;  // [H, Dv] if grad_weight_per_head, else [Dv]; contiguous
  bool grad_weight_per_head = false;
  float* grad_bias_ptr = nullptr;  // [H, Dv] if grad_bias_per_head, else [Dv]; contiguous
  bool grad_bias_per_head = false;
  // gated_group_norm_workspace_bytes() of device memory, 16-byte aligned
  void* workspace_ptr = nullptr;
};

// out[c] = sum over r of in[r, c], in an order that depends only on `rows`. Without rows it is zeros.
struct ColumnSumParams {
  const float* in_ptr = nullptr;  // [rows, columns] contiguous
  float* out_ptr = nullptr;       // [columns]
  int64_t rows = 0;
  int64_t columns = 0;
};

// A row of Dv elements lies in the registers of threads_per_row threads, kGatedGroupNormElements each.
// The kernels take the first entry that is wide enough.
struct GatedGroupNormTile {
  int max_head_dim_v;
  int threads_per_row;
};
inline constexpr int kGatedGroupNormElements = 16;  // the backward keeps four such float32 arrays
inline constexpr int kGatedGroupNormBlock = 128;    // threads
inline constexpr GatedGroupNormTile kGatedGroupNormTiles[] = {
    {128, 8}, {256, 16}, {512, 32}, {1024, 64}};
inline constexpr int kGatedGroupNormTileCount =
    sizeof(kGatedGroupNormTiles) / sizeof(GatedGroupNormTile);

// Blocks per multiprocessor. They bound the registers of a thread to 65,536 / (blocks * 128). That is 64 in
// the forward, 128 in the backward, and 168 in the backward of float32, whose packets are twice as large.
inline constexpr int kGatedGroupNormForwardOccupancy = 8;
constexpr int gated_group_norm_backward_occupancy(DType dtype) {
  return dtype == DType::kFloat32 ? 3 : 4;
}

// Blocks of the backward. Each leaves one partial row of the gradients of weight and bias, so more blocks
// mean more workspace traffic, and fewer blocks leave multiprocessors idle. 1,024 are about two waves on
// 132 multiprocessors.
inline constexpr int64_t kGatedGroupNormBackwardBlocks = 1024;

namespace gated_group_norm_detail {

constexpr bool tiles_are_valid() {
  int previous = 0;
  for (const auto& tile : kGatedGroupNormTiles) {
    const int threads = tile.threads_per_row;
    const bool fills_registers = tile.max_head_dim_v == threads * kGatedGroupNormElements;
    const bool ascending = tile.max_head_dim_v > previous;                    // first fit
    const bool power_of_two = threads > 0 && (threads & (threads - 1)) == 0;  // butterfly sums
    if (!fills_registers || !ascending || !power_of_two || kGatedGroupNormBlock % threads != 0) {
      return false;
    }
    // Static shared memory of the backward: sums over the block's rows, weight, bias, sums of rows.
    const int floats = kGatedGroupNormBlock * kGatedGroupNormElements + 2 * tile.max_head_dim_v;
    if (floats * sizeof(float) + kGatedGroupNormBlock > 48 * 1024) return false;
    previous = tile.max_head_dim_v;
  }
  return true;
}
static_assert(tiles_are_valid());
static_assert(kGatedGroupNormBlock % 32 == 0, "sums use full warps");
static_assert(kGatedGroupNormElements % 8 == 0, "accesses are of up to 8 elements");

// Whether all accesses of `vector` elements, each of 16 bytes at most, are aligned. The stride of a
// dimension of one element or none is never used and may be anything.
inline bool aligned(const void* ptr, DType dtype, int vector, int64_t stride_n, int64_t tokens,
                    int64_t stride_h, int64_t heads) {
  const int widest = 16 / element_size(dtype);
  const int elements = vector < widest ? vector : widest;
  return reinterpret_cast<uintptr_t>(ptr) % (elements * element_size(dtype)) == 0 &&
         (tokens <= 1 || stride_n % elements == 0) && (heads <= 1 || stride_h % elements == 0);
}

inline bool inputs_aligned(const GatedGroupNormInputs& p, int vector) {
  return p.head_dim_v % vector == 0 &&
         aligned(p.x_ptr, p.dtype, vector, p.x_stride_n, p.tokens, p.x_stride_h, p.heads) &&
         aligned(p.gate_ptr, p.dtype, vector, p.gate_stride_n, p.tokens, p.gate_stride_h,
                 p.heads) &&
         aligned(p.weight_ptr, p.weight_dtype, vector, 0, 0, p.weight_stride_h, p.heads) &&
         aligned(p.bias_ptr, p.bias_dtype, vector, 0, 0, p.bias_stride_h, p.heads);
}

inline bool arrays_aligned(const GatedGroupNormParams& p, int vector) {
  return inputs_aligned(p, vector) && aligned(p.out_ptr, p.dtype, vector, 0, 0, 0, 0);
}

inline bool arrays_aligned(const GatedGroupNormBackwardParams& p, int vector) {
  return inputs_aligned(p, vector) &&
         aligned(p.grad_out_ptr, p.dtype, vector, p.grad_out_stride_n, p.tokens,
                 p.grad_out_stride_h, p.heads) &&
         aligned(p.grad_x_ptr, p.dtype, vector, 0, 0, 0, 0) &&
         aligned(p.grad_gate_ptr, p.dtype, vector, 0, 0, 0, 0);
}

}  // namespace gated_group_norm_detail

// Index into the tile table, or -1 if Dv is not a positive multiple of 4 or is too wide.
constexpr int gated_group_norm_tile(int64_t head_dim_v) {
  if (head_dim_v <= 0 || head_dim_v % 4 != 0) return -1;
  for (int i = 0; i < kGatedGroupNormTileCount; ++i) {
    if (head_dim_v <= kGatedGroupNormTiles[i].max_head_dim_v) return i;
  }
  return -1;
}

// The number of elements per access, 8 (16-bit types) or 4. It is the most that every array allows, or 0 if
// none is possible.
template <class Params>
int gated_group_norm_vector(const Params& p) {
  for (int vector = 8; vector >= 4; vector /= 2) {
    if (vector * element_size(p.dtype) <= 16 &&
        gated_group_norm_detail::arrays_aligned(p, vector)) {
      return vector;
    }
  }
  return 0;
}

// Whether the kernels support this call. Params is GatedGroupNormParams or GatedGroupNormBackwardParams.
// Pointers to outputs and workspace may still be null, because the allocations of torch are aligned.
template <class Params>
bool supports_gated_group_norm(const Params& p) {
  constexpr int64_t kMaxRows = INT32_MAX;  // a row's index is 32 bits wide
  const auto affine_dtype = [&](DType dtype) {
    return dtype == DType::kFloat32 || dtype == p.dtype;
  };
  return p.tokens >= 0 && p.heads >= 0 && (p.heads == 0 || p.tokens <= kMaxRows / p.heads) &&
         p.heads <= kMaxRows && (p.weight_ptr == nullptr || affine_dtype(p.weight_dtype)) &&
         (p.bias_ptr == nullptr || affine_dtype(p.bias_dtype)) &&
         gated_group_norm_tile(p.head_dim_v) >= 0 && gated_group_norm_vector(p) > 0;
}

// The number of blocks that share the tokens of one head in the backward. It is a function of the shape
// only, so that the same call gives the same bits on every device.
inline int64_t gated_group_norm_blocks_per_head(const GatedGroupNormInputs& p) {
  const int tile = gated_group_norm_tile(p.head_dim_v);
  if (tile < 0 || p.tokens <= 0 || p.heads <= 0) return 0;
  const int64_t rows = kGatedGroupNormBlock / kGatedGroupNormTiles[tile].threads_per_row;
  const int64_t needed = (p.tokens + rows - 1) / rows;
  const int64_t share =
      p.heads < kGatedGroupNormBackwardBlocks ? kGatedGroupNormBackwardBlocks / p.heads : 1;
  return needed < share ? needed : share;
}

// Bytes of the partial sums [blocks_per_head, H, Dv] in float32, of grad_weight and then of grad_bias.
inline size_t gated_group_norm_workspace_bytes(const GatedGroupNormBackwardParams& p) {
  const int64_t gradients = (p.grad_weight_ptr != nullptr) + (p.grad_bias_ptr != nullptr);
  return static_cast<size_t>(gradients * gated_group_norm_blocks_per_head(p) * p.heads *
                             p.head_dim_v) *
         sizeof(float);
}

}  // namespace retnet::kernels::cuda
