// SPDX-License-Identifier: Apache-2.0
//
// Gated group norm, forward.
//
//  1. Equation. For each token n and head h: normed = (x - mean) rsqrt(var + eps), or x rsqrt(mean(x^2) +
//     eps); out = (normed * weight + bias) * gate * sigmoid(gate). An absent weight is 1, an absent bias 0,
//     and an absent gate no factor.
//  2. Shapes. x, gate [N, H, Dv] with any strides of n and h; weight, bias [Dv] or [H, Dv]; out
//     [N, H, Dv] contiguous. A row is the Dv channels of one token of one head, row n * H + h of the matrix
//     of N H rows.
//  3. CTA -> problem. A block of 128 threads takes 128 / kThreads consecutive rows, each with kThreads
//     threads. The grid covers all rows, so a group of threads has one row.
//  4. Warp roles. All warps do the same. Up to Dv = 512 a row lies inside a warp. Above, it spans two
//     warps.
//  5. Tile and budget. A thread has 16 elements in float32 and 16 of the gate as loaded. A row has 8 threads
//     up to Dv = 128, 16 up to 256, 32 up to 512, and 64 up to 1,024. A block has 64 bytes of shared
//     memory. A thread has at most 64 registers, so a multiprocessor has 8 blocks, 1,024 threads and 64 KB
//     of loads in flight (128 in float32). A row reads 2 Dv elements of device memory, or Dv without a gate,
//     and writes Dv (cost_model.h). By the model (`make kernel-report`), not measured, 25 KB in flight hide
//     1 us of latency at the 3.35 TB/s of an H100, and issuing a row takes at most 77% of the cycles that
//     moving it takes (bfloat16, Dv = 428).
//  6. Pipeline. There is none. x and gate are loaded together at the start, and other blocks hide the
//     latency.
//  7. Sync contract. It is that of prim::RowSum: one block barrier a sum, and only if rows are wider than a
//     warp. So a thread whose row lies past the end brings zeros and stores nothing.
//  8. Numerics. Everything is float32. The mean comes first, then the second moment about it. The store rounds
//     once. Sums go by column within a thread, by a butterfly over lanes, and then over warps.
//  9. Tails. Dv need not fill the tile. Slots past Dv are neither loaded nor stored nor counted.
// 10. Writes. Each element of out is written once, by one thread. The bits of a row depend only on that
//     row, weight and bias.
// 11. Parameters. The kernel takes float32, bfloat16 and float16, and Dv a multiple of 4 up to 1,024. Accesses have
//     16 bytes, or 8 for 16-bit types whose rows are only 8-byte aligned (Dv = 428). It runs on any
//     architecture from sm_75.
//
// Why this way: memory bounds the kernel, so the only gain is one pass with the row in registers. Norm, gate,
// weight and bias are branches that a whole launch takes alike. They cost no bytes, and instantiating them
// all would mean 32 times as many kernels. See docs/kernels/norm.md.
#pragma once

#include "kernels/cuda/norm/launch.h"
#include "kernels/cuda/norm/row.cuh"

namespace retnet::kernels::cuda {

template <DType kDtype, int kVector, int kThreads>
__global__ void __launch_bounds__(kGatedGroupNormBlock, kGatedGroupNormForwardOccupancy)
    gated_group_norm_kernel(const GatedGroupNormParams p) {
  using Row = GatedGroupNormRow<kDtype, kVector, kThreads>;
  RETNET_SHARED(float, sSum, [2][kGatedGroupNormBlock / 32][Row::Sum::kMaxValues]);
  typename Row::Sum sum(sSum);

  // Indices fit into 32 bits (supports_gated_group_norm), in which a division is several times
  // cheaper.
  const uint32_t index = blockIdx.x * Row::kRows + Row::row_of_block();
  const uint32_t heads = static_cast<uint32_t>(p.heads);
  const uint32_t n = index / heads, h = index - n * heads;
  const Row row(static_cast<int>(p.head_dim_v), n < static_cast<uint32_t>(p.tokens));

  typename Row::Packet rX[Row::kSlots], rGate[Row::kSlots];
  row.load(rX, p.x_ptr, n * p.x_stride_n + h * p.x_stride_h);
  if (p.gate_ptr != nullptr) {
    row.load(rGate, p.gate_ptr, n * p.gate_stride_n + h * p.gate_stride_h);
  }

  float x[Row::kSlots][kVector];
  RETNET_UNROLL
  for (int s = 0; s < Row::kSlots; ++s) prim::unpack(rX[s], x[s]);
  const float rstd = row.centre(x, p.norm, p.eps, sum);

  const int64_t weight = h * p.weight_stride_h + Row::column(0);
  const int64_t bias = h * p.bias_stride_h + Row::column(0);
  const int64_t out = index * p.head_dim_v + Row::column(0);
  RETNET_UNROLL
  for (int s = 0; s < Row::kSlots; ++s) {
    if (!row.holds(s)) continue;
    constexpr int kStride = Row::kSlotStride;
    RETNET_UNROLL
    for (int i = 0; i < kVector; ++i) x[s][i] *= rstd;
    float values[kVector];
    if (p.weight_ptr != nullptr) {
      Row::load_affine(values, p.weight_ptr, p.weight_dtype, weight + s * kStride);
      RETNET_UNROLL
      for (int i = 0; i < kVector; ++i) x[s][i] *= values[i];
    }
    if (p.bias_ptr != nullptr) {
      Row::load_affine(values, p.bias_ptr, p.bias_dtype, bias + s * kStride);
      RETNET_UNROLL
      for (int i = 0; i < kVector; ++i) x[s][i] += values[i];
    }
    if (p.gate_ptr != nullptr) {
      prim::unpack(rGate[s], values);
      RETNET_UNROLL
      for (int i = 0; i < kVector; ++i) x[s][i] *= values[i] * sigmoid(values[i]);
    }
    prim::store_packet(p.out_ptr, out + s * kStride, prim::pack<kDtype>(x[s]));
  }
}

template <DType kDtype, int kVector>
cudaError_t gated_group_norm_forward_launch(const GatedGroupNormParams& params,
                                            cudaStream_t stream) {
  return with_gated_group_norm_tile(params.head_dim_v, [&]<int kThreads>() {
    constexpr int64_t kRows = kGatedGroupNormBlock / kThreads;
    const int64_t blocks = (params.tokens * params.heads + kRows - 1) / kRows;
    return prim::launch(gated_group_norm_kernel<kDtype, kVector, kThreads>,
                        static_cast<unsigned>(blocks), kGatedGroupNormBlock, stream, params);
  });
}

}  // namespace retnet::kernels::cuda
