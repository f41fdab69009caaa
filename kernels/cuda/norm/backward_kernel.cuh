// SPDX-License-Identifier: Apache-2.0
//
// Gated group norm, backward.
//
//  1. Equation. With g = grad_out, a = gate, s = sigmoid(a), and normed and rstd computed anew from
//     x as in the forward:
//         affine      = normed * weight + bias
//         grad_affine = g a s                               (without a gate: g)
//         grad_gate   = g affine s (1 + a (1 - s))
//         grad_weight = sum over n (and h) of grad_affine normed
//         grad_bias   = sum over n (and h) of grad_affine
//         grad_x      = rstd (d - mean(d) - normed mean(d normed)),   d = grad_affine weight
//                                                           (kRms: without mean(d))
//  2. Shapes. grad_out, x, gate [N, H, V] with any strides of n and h; weight, bias [V] or [H, V];
//     grad_x, grad_gate [N, H, V] contiguous; workspace fp32 [P, H, V] for the weight, then for the
//     bias, P being the blocks per head.
//  3. CTA -> problem. Block b takes head b % H and, with p = b / H, the tokens (p + i P) R + r for
//     i = 0, 1, ... and r = 0 .. R-1: R = 128 / kThreads rows at a time. Since its head is fixed, a
//     thread keeps its columns' sums for grad_weight and grad_bias in registers.
//  4. Warp roles. None; up to V = 512 a row lies inside a warp, above it spans two warps.
//  5. Tile and budget. 16 elements a thread: normed, d and two sums in fp32, grad_out and gate as
//     loaded. Shared memory: 8 KB for the sums over rows, and 128 kThreads bytes for weight and
//     bias, so that they take no registers: 12 KB at V = 512. Registers: at most 128 (fp32: 168),
//     so 4 blocks (3), 512 threads and 48 KB of loads in flight (72) per multiprocessor, of which
//     25 are needed (see the forward). Device memory, per row: 3 V elements read and 2 V written
//     (without a gate 2 V and V); and the workspace, written and read once: 2.5% of the whole at
//     65,536 rows of V = 512 in bf16.
//  6. Pipeline. None: a row's three loads are issued together; other blocks hide the latency.
//  7. Sync contract. sWeight and sBias: written by the block's first row, barrier, then only read.
//     Sums over a row: that of prim::RowSum, so every thread takes every turn of the loop over
//     tokens, and threads without a row bring zeros. At the end each row of the block writes its
//     sums to sRows; barrier; all threads add them over the rows; barrier; sRows is used again.
//  8. Numerics. fp32 throughout; one rounding at each store of grad_x and grad_gate. grad_weight
//     and grad_bias stay fp32: summed over a thread's tokens in order, over the block's rows in
//     order, then by column_sum.
//  9. Tails. As in the forward; every partial row is written in full, also by rows without a token.
// 10. Writes. Each element of each output once; no atomics: the same bits from call to call. A row
//     of grad_x and grad_gate depends on that row, weight and bias alone; the sums depend on all
//     rows and, through P, on N and H.
// 11. Parameters. Those of the forward; any of the four gradients may be left out.
//
// Why this way: bound by memory, so x is read once and its statistics come from registers instead
// of being saved by the forward; the sums go through a small workspace because float atomics are
// not deterministic.
#pragma once

#include "kernels/cuda/norm/column_sum.h"
#include "kernels/cuda/norm/instances.h"
#include "kernels/cuda/norm/row.cuh"

namespace retnet::kernels::cuda {

// Adds `values` over the rows of the block and writes the sum to dst[0 .. value_dim).
template <class Row, int kVector>
RETNET_DEVICE void store_block_sum(const float (&values)[Row::kSlots][kVector], float* sRows,
                                   float* dst, int value_dim) {
  RETNET_UNROLL
  for (int s = 0; s < Row::kSlots; ++s) {
    Row::store_shared(sRows + Row::row_of_block() * Row::kSharedSize, s, values[s]);
  }
  prim::sync_block();
  constexpr int kThreads = Row::kSharedSize / kGatedGroupNormElements;
  for (int i = threadIdx.x; i < Row::kSharedSize / 4; i += kGatedGroupNormBlock) {
    const int packet = i / kThreads, thread = i % kThreads;
    const int slot = packet / Row::kPacketsPerSlot;
    const int column = (slot * kThreads + thread) * kVector + packet % Row::kPacketsPerSlot * 4;
    if (column >= value_dim) continue;
    float total[4] = {0, 0, 0, 0};
    for (int row = 0; row < Row::kRows; ++row) {
      float quad[4];
      const int offset = row * Row::kSharedSize + Row::shared_offset(packet, thread);
      prim::unpack(prim::load_packet<DType::kFloat32, 4>(sRows, offset), quad);
      RETNET_UNROLL
      for (int j = 0; j < 4; ++j) total[j] += quad[j];
    }
    prim::store_packet(dst, column, prim::pack<DType::kFloat32>(total));
  }
  prim::sync_block();
}

template <DType kDtype, int kVector, int kThreads>
__global__ void __launch_bounds__(kGatedGroupNormBlock, gated_group_norm_backward_occupancy(kDtype))
    gated_group_norm_backward_kernel(const GatedGroupNormBackwardParams p) {
  using Row = GatedGroupNormRow<kDtype, kVector, kThreads>;
  RETNET_SHARED(float, sSum, [2][kGatedGroupNormBlock / 32][Row::Sum::kMaxValues]);
  RETNET_SHARED(float, sWeight, [Row::kSharedSize]);
  RETNET_SHARED(float, sBias, [Row::kSharedSize]);
  RETNET_SHARED(float, sRows, [Row::kRows * Row::kSharedSize]);
  typename Row::Sum sum(sSum);

  const uint32_t heads = static_cast<uint32_t>(p.heads);
  const uint32_t h = blockIdx.x % heads;
  const uint32_t part = blockIdx.x / heads;  // p of the header
  const int value_dim = static_cast<int>(p.value_dim);
  const int64_t step = static_cast<int64_t>(gridDim.x / heads) * Row::kRows;

  // Each row's threads read back what the block's first row wrote: the same columns of one head.
  if (Row::row_of_block() == 0) {
    RETNET_UNROLL
    for (int s = 0; s < Row::kSlots; ++s) {
      const int column = Row::column(s);
      if (column >= value_dim) continue;
      float weight[kVector], bias[kVector];
      RETNET_UNROLL
      for (int i = 0; i < kVector; ++i) weight[i] = 1, bias[i] = 0;
      if (p.weight_ptr != nullptr) {
        Row::load_affine(weight, p.weight_ptr, p.weight_dtype, h * p.weight_stride_h + column);
      }
      if (p.bias_ptr != nullptr) {
        Row::load_affine(bias, p.bias_ptr, p.bias_dtype, h * p.bias_stride_h + column);
      }
      Row::store_shared(sWeight, s, weight);
      Row::store_shared(sBias, s, bias);
    }
  }
  prim::sync_block();

  float grad_weight[Row::kSlots][kVector] = {}, grad_bias[Row::kSlots][kVector] = {};
  for (int64_t first = static_cast<int64_t>(part) * Row::kRows; first < p.tokens; first += step) {
    const int64_t n = first + Row::row_of_block();
    const Row row(value_dim, n < p.tokens);
    const int64_t contiguous = (n * p.heads + h) * p.value_dim + Row::column(0);

    typename Row::Packet rX[Row::kSlots], rGrad[Row::kSlots], rGate[Row::kSlots];
    row.load(rX, p.x_ptr, n * p.x_stride_n + h * p.x_stride_h);
    row.load(rGrad, p.grad_out_ptr, n * p.grad_out_stride_n + h * p.grad_out_stride_h);
    if (p.gate_ptr != nullptr) {
      row.load(rGate, p.gate_ptr, n * p.gate_stride_n + h * p.gate_stride_h);
    }

    float normed[Row::kSlots][kVector];  // x until its statistics are known
    RETNET_UNROLL
    for (int s = 0; s < Row::kSlots; ++s) prim::unpack(rX[s], normed[s]);
    const float rstd = row.centre(normed, p.norm, p.eps, sum);

    float d[Row::kSlots][kVector];
    float sums[2] = {0, 0};  // of d and of d * normed
    RETNET_UNROLL
    for (int s = 0; s < Row::kSlots; ++s) {
      if (!row.holds(s)) continue;
      float weight[kVector];
      Row::load_shared(weight, sWeight, s);
      RETNET_UNROLL
      for (int i = 0; i < kVector; ++i) normed[s][i] *= rstd;
      prim::unpack(rGrad[s], d[s]);
      if (p.gate_ptr != nullptr) {
        float gate[kVector], bias[kVector], grad_gate[kVector];
        prim::unpack(rGate[s], gate);
        Row::load_shared(bias, sBias, s);
        RETNET_UNROLL
        for (int i = 0; i < kVector; ++i) {
          const float sigma = sigmoid(gate[i]);
          const float affine = normed[s][i] * weight[i] + bias[i];
          grad_gate[i] = d[s][i] * affine * sigma * (1.0f + gate[i] * (1.0f - sigma));
          d[s][i] *= gate[i] * sigma;
        }
        if (p.grad_gate_ptr != nullptr) {
          prim::store_packet(p.grad_gate_ptr, contiguous + s * Row::kSlotStride,
                             prim::pack<kDtype>(grad_gate));
        }
      }
      RETNET_UNROLL
      for (int i = 0; i < kVector; ++i) {
        grad_weight[s][i] += d[s][i] * normed[s][i];
        grad_bias[s][i] += d[s][i];
        d[s][i] *= weight[i];
        sums[0] += d[s][i];
        sums[1] += d[s][i] * normed[s][i];
      }
    }

    if (p.grad_x_ptr != nullptr) {
      sum(sums);
      const float mean_d = p.norm == Norm::kLayer ? sums[0] * row.inverse : 0;
      const float mean_d_normed = sums[1] * row.inverse;
      RETNET_UNROLL
      for (int s = 0; s < Row::kSlots; ++s) {
        if (!row.holds(s)) continue;
        RETNET_UNROLL
        for (int i = 0; i < kVector; ++i) {
          d[s][i] = rstd * (d[s][i] - mean_d - normed[s][i] * mean_d_normed);
        }
        prim::store_packet(p.grad_x_ptr, contiguous + s * Row::kSlotStride,
                           prim::pack<kDtype>(d[s]));
      }
    }
  }

  float* partial = static_cast<float*>(p.workspace_ptr) + blockIdx.x * p.value_dim;
  if (p.grad_weight_ptr != nullptr) {
    store_block_sum<Row, kVector>(grad_weight, sRows, partial, value_dim);
    partial += gridDim.x * p.value_dim;
  }
  if (p.grad_bias_ptr != nullptr) {
    store_block_sum<Row, kVector>(grad_bias, sRows, partial, value_dim);
  }
}

template <DType kDtype, int kVector>
cudaError_t gated_group_norm_backward_launch(const GatedGroupNormBackwardParams& params,
                                             cudaStream_t stream) {
  return with_gated_group_norm_tile(params.value_dim, [&]<int kThreads>() {
    const int64_t blocks = gated_group_norm_blocks_per_head(params) * params.heads;
    return prim::launch(gated_group_norm_backward_kernel<kDtype, kVector, kThreads>,
                        static_cast<unsigned>(blocks), kGatedGroupNormBlock, stream, params);
  });
}

}  // namespace retnet::kernels::cuda
