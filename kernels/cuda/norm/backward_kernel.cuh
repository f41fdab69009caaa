// SPDX-License-Identifier: Apache-2.0
//
// Gated group norm, backward.
//
//  1. Equation. With s = sigmoid(gate), and normed and rstd computed again from x as in the forward:
//         affine      = normed * weight + bias
//         grad_affine = grad_out gate s                     (without a gate: grad_out)
//         grad_gate   = grad_out affine s (1 + gate (1 - s))
//         grad_weight = sum over n (and h) of grad_affine normed
//         grad_bias   = sum over n (and h) of grad_affine
//         grad_normed = grad_affine weight
//         grad_x      = rstd (grad_normed - mean(grad_normed) - normed mean(grad_normed normed))
//                                                           (kRms: without mean(grad_normed))
//  2. Shapes. grad_out, x, gate [N, H, Dv] with any strides of n and h; weight, bias [Dv] or [H, Dv];
//     grad_x, grad_gate [N, H, Dv] contiguous; workspace float32 [P, H, Dv] for the weight, then for the bias,
//     with P the blocks per head.
//     A row is the Dv channels of one token of one head, a row of the matrix of N H rows.
//  3. CTA -> problem. Block b takes head b % H and, with p = b / H, the tokens (p + i P) R + r for
//     i = 0, 1, ... and r = 0 .. R-1. These are R = 128 / kThreads rows at a time. The head of a block is
//     fixed, so a thread keeps the sums of its columns for grad_weight and grad_bias in registers.
//  4. Warp roles. All warps do the same. Up to Dv = 512 a row lies inside a warp. Above, it spans two
//     warps.
//  5. Tile and budget. A thread keeps 16 elements: normed, grad_normed and two sums in float32, grad_out and
//     gate as loaded. Shared memory holds the sums over rows in 8 KB, and weight and bias, which then take
//     no registers, in 128 kThreads bytes. That is 12 KB at Dv = 512. A thread has at most 128 registers
//     (168 in float32). So a multiprocessor has 4 blocks (3), 512 threads and 48 KB of loads in flight (72),
//     of which it needs 25 (see the forward). A row reads 3 Dv elements of device memory and writes 2 Dv,
//     or 2 Dv and Dv without a gate. The workspace is written and read once, which is 2.5% of the whole at
//     65,536 rows of Dv = 512 in bfloat16 (cost_model.h).
//  6. Pipeline. There is none. The three loads of a row are issued together, and other blocks hide the
//     latency.
//  7. Sync contract.
//     - The first row of the block writes sWeight and sBias. After a barrier they are only read.
//     - Sums over a row follow the contract of prim::RowSum. So every thread takes every turn of the loop
//       over tokens, and threads without a row bring zeros.
//     - At the end each row of the block writes its sums to sRows. After a barrier all threads add them over
//       the rows. After another barrier sRows is used again.
//  8. Numerics. Everything is float32. Each store of grad_x and grad_gate rounds once. grad_weight and
//     grad_bias stay float32. They are summed over the tokens of a thread in order, over the rows of the block
//     in order, and then by column_sum.
//  9. Tails. They are those of the forward. Every partial row is written in full, also by rows without a
//     token.
// 10. Writes. Each element of each output is written once, without atomics, so each call gives the same
//     bits. A row of grad_x and grad_gate depends only on that row, weight and bias. The sums depend on all
//     rows and, through P, on N and H.
// 11. Parameters. They are those of the forward. Any of the four gradients may be left out.
//
// Why this way: memory bounds the kernel, so x is read once, and its statistics come from registers instead
// of being saved by the forward. The sums go through a small workspace because float atomics are not
// deterministic. See docs/kernels/norm.md.
#pragma once

#include "kernels/cuda/norm/launch.h"
#include "kernels/cuda/norm/row.cuh"

namespace retnet::kernels::cuda {

// Adds `sums` over the rows of the block and writes the result to dst[0 .. head_dim_v).
template <class Row, int kVector>
RETNET_DEVICE void store_block_sum(const float (&sums)[Row::kSlots][kVector], float* sRows,
                                   float* dst, int head_dim_v) {
  RETNET_UNROLL
  for (int s = 0; s < Row::kSlots; ++s) {
    Row::store_shared(sRows + Row::row_of_block() * Row::kSharedSize, s, sums[s]);
  }
  prim::sync_block();
  constexpr int kThreads = Row::kSharedSize / kGatedGroupNormElements;
  for (int i = threadIdx.x; i < Row::kSharedSize / 4; i += kGatedGroupNormBlock) {
    const int packet = i / kThreads, thread = i % kThreads;
    const int slot = packet / Row::kPacketsPerSlot;
    const int column = (slot * kThreads + thread) * kVector + packet % Row::kPacketsPerSlot * 4;
    if (column >= head_dim_v) continue;
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
  const int head_dim_v = static_cast<int>(p.head_dim_v);
  const int64_t stride = static_cast<int64_t>(gridDim.x / heads) * Row::kRows;

  // The threads of each row read what the first row of the block wrote, the same columns of one head.
  if (Row::row_of_block() == 0) {
    RETNET_UNROLL
    for (int s = 0; s < Row::kSlots; ++s) {
      const int column = Row::column(s);
      if (column >= head_dim_v) continue;
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
  for (int64_t first = static_cast<int64_t>(part) * Row::kRows; first < p.tokens; first += stride) {
    const int64_t n = first + Row::row_of_block();
    const Row row(head_dim_v, n < p.tokens);
    const int64_t contiguous = (n * p.heads + h) * p.head_dim_v + Row::column(0);

    typename Row::Packet rX[Row::kSlots], rGradOut[Row::kSlots], rGate[Row::kSlots];
    row.load(rX, p.x_ptr, n * p.x_stride_n + h * p.x_stride_h);
    row.load(rGradOut, p.grad_out_ptr, n * p.grad_out_stride_n + h * p.grad_out_stride_h);
    if (p.gate_ptr != nullptr) {
      row.load(rGate, p.gate_ptr, n * p.gate_stride_n + h * p.gate_stride_h);
    }

    float normed[Row::kSlots][kVector];  // x until its statistics are known
    RETNET_UNROLL
    for (int s = 0; s < Row::kSlots; ++s) prim::unpack(rX[s], normed[s]);
    const float rstd = row.centre(normed, p.norm, p.eps, sum);

    float grad[Row::kSlots][kVector];  // grad_out, then grad_affine, grad_normed and grad_x
    float sums[2] = {0, 0};            // of grad_normed, and of grad_normed * normed
    RETNET_UNROLL
    for (int s = 0; s < Row::kSlots; ++s) {
      if (!row.holds(s)) continue;
      float weight[kVector];
      Row::load_shared(weight, sWeight, s);
      RETNET_UNROLL
      for (int i = 0; i < kVector; ++i) normed[s][i] *= rstd;
      prim::unpack(rGradOut[s], grad[s]);
      if (p.gate_ptr != nullptr) {
        float gate[kVector], bias[kVector], grad_gate[kVector];
        prim::unpack(rGate[s], gate);
        Row::load_shared(bias, sBias, s);
        RETNET_UNROLL
        for (int i = 0; i < kVector; ++i) {
          const float sigma = sigmoid(gate[i]);
          const float affine = normed[s][i] * weight[i] + bias[i];
          grad_gate[i] = grad[s][i] * affine * sigma * (1.0f + gate[i] * (1.0f - sigma));
          grad[s][i] *= gate[i] * sigma;
        }
        if (p.grad_gate_ptr != nullptr) {
          prim::store_packet(p.grad_gate_ptr, contiguous + s * Row::kSlotStride,
                             prim::pack<kDtype>(grad_gate));
        }
      }
      RETNET_UNROLL
      for (int i = 0; i < kVector; ++i) {
        grad_weight[s][i] += grad[s][i] * normed[s][i];
        grad_bias[s][i] += grad[s][i];
        grad[s][i] *= weight[i];
        sums[0] += grad[s][i];
        sums[1] += grad[s][i] * normed[s][i];
      }
    }

    if (p.grad_x_ptr != nullptr) {
      sum(sums);
      const float mean_grad = p.norm == Norm::kLayer ? sums[0] * row.inverse : 0;
      const float mean_grad_normed = sums[1] * row.inverse;
      RETNET_UNROLL
      for (int s = 0; s < Row::kSlots; ++s) {
        if (!row.holds(s)) continue;
        RETNET_UNROLL
        for (int i = 0; i < kVector; ++i) {
          grad[s][i] = rstd * (grad[s][i] - mean_grad - normed[s][i] * mean_grad_normed);
        }
        prim::store_packet(p.grad_x_ptr, contiguous + s * Row::kSlotStride,
                           prim::pack<kDtype>(grad[s]));
      }
    }
  }

  float* partial = static_cast<float*>(p.workspace_ptr) + blockIdx.x * p.head_dim_v;
  if (p.grad_weight_ptr != nullptr) {
    store_block_sum<Row, kVector>(grad_weight, sRows, partial, head_dim_v);
    partial += gridDim.x * p.head_dim_v;
  }
  if (p.grad_bias_ptr != nullptr) {
    store_block_sum<Row, kVector>(grad_bias, sRows, partial, head_dim_v);
  }
}

template <DType kDtype, int kVector>
cudaError_t gated_group_norm_backward_launch(const GatedGroupNormBackwardParams& params,
                                             cudaStream_t stream) {
  return with_gated_group_norm_tile(params.head_dim_v, [&]<int kThreads>() {
    const int64_t blocks = gated_group_norm_blocks_per_head(params) * params.heads;
    return prim::launch(gated_group_norm_backward_kernel<kDtype, kVector, kThreads>,
                        static_cast<unsigned>(blocks), kGatedGroupNormBlock, stream, params);
  });
}

}  // namespace retnet::kernels::cuda
