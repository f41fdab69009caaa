// SPDX-License-Identifier: Apache-2.0
//
// Rotary position embedding of q and k, or of their gradients.
//
//  1. Equation. With angle = position * frequency[i], for each pair of channels (a, b):
//     out[a] = x[a] cos(angle) - x[b] sin(angle), out[b] = x[a] sin(angle) + x[b] cos(angle).
//     (a, b) = (2 i, 2 i + 1) if kInterleaved, else (i, i + Dk / 2). If `inverse`, the rotation is by
//     -angle.
//  2. Shapes. q, k [B, T, H, Dk] with any strides of b, t and h, either may be absent; out [B, T, H, Dk]
//     contiguous; positions [B, T] (stride 0 of b: [T]); frequencies [Dk / 2].
//  3. CTA -> problem. A thread takes one token, kRotaryHeads heads and kVector neighbouring channels of q
//     and of k, and their partners unless kInterleaved. Columns run fastest, then groups of heads, then
//     tokens. Threads are numbered consecutively, and a block has 128 of them.
//  4. Warp roles. All warps do the same.
//  5. Tile and budget. A thread holds the cosines and sines of kPairs angles in 16 registers (8 if
//     kInterleaved), and kHeads heads of both operands as loaded in 32. It has at most 80 registers, so a
//     multiprocessor has 6 blocks, 768 threads and 96 KB of loads in flight. There is no shared memory. A
//     token and head reads 2 Dk elements of device memory and writes 2 Dk (cost_model.h). A token adds a
//     position.
//  6. Pipeline. There is none. The loads of kHeads heads are issued together.
//  7. Sync contract. There is none, because no thread sees what another writes.
//  8. Numerics. The angle is float64. It is reduced by multiples of pi/2 (Cody and Waite), in two parts by
//     fused multiply-adds, of which the first is exact. Polynomials in float64 give cosine and sine to
//     1e-10. They are rounded to float32. This is valid below 2^53 radians. The rotation is float32, and the
//     store rounds once.
//  9. Tails. Heads past the end of the last group and threads past the last token do nothing.
// 10. Writes. Each element of the outputs is written once, by one thread. Its bits depend only on its own
//     pair, position and frequency.
// 11. Parameters. The kernel takes float32, bfloat16 and float16. Accesses have 16 bytes, or 8 for 16-bit types whose
//     channels are only 8-byte aligned. Dk (Dk / 2 unless kInterleaved) is a multiple of the elements of an
//     access, 4 or 8. It runs on any architecture from sm_75.
//
// Why this way: memory bounds the kernel once an angle serves the heads of both operands. An angle takes 17
// operations in float64 and comes with 128 bytes moved (bfloat16, 8 heads). The slowest case, an architecture
// with 1/64 of its rate for float64 (26 ps on an RTX 4090), still waits for memory (128 ps). A table of
// cosines would be a second launch, and more bytes if positions differ by batch entry.
#pragma once

#include "kernels/cuda/prim/angle.cuh"
#include "kernels/cuda/prim/prim.cuh"
#include "kernels/cuda/rotary/launch.h"

namespace retnet::kernels::cuda {

// kVector channels of one head and, unless kInterleaved, their partners.
template <DType kDtype, int kVector, bool kInterleaved>
struct RotaryPacket {
  static constexpr int kPairs = kInterleaved ? kVector / 2 : kVector;
  prim::Packet<kDtype, kVector> parts[kInterleaved ? 1 : 2];

  RETNET_DEVICE void load(const void* base, int64_t offset, int64_t half_dim) {
    parts[0] = prim::load_readonly_packet<kDtype, kVector>(base, offset);
    if constexpr (!kInterleaved) {
      parts[1] = prim::load_readonly_packet<kDtype, kVector>(base, offset + half_dim);
    }
  }

  RETNET_DEVICE void store(void* base, int64_t offset, int64_t half_dim) const {
    prim::store_packet(base, offset, parts[0]);
    if constexpr (!kInterleaved) prim::store_packet(base, offset + half_dim, parts[1]);
  }

  RETNET_DEVICE void rotate(const float (&cos)[kPairs], const float (&sin)[kPairs]) {
    float x[kInterleaved ? 1 : 2][kVector];
    RETNET_UNROLL
    for (int i = 0; i < (kInterleaved ? 1 : 2); ++i) prim::unpack(parts[i], x[i]);
    RETNET_UNROLL
    for (int i = 0; i < kPairs; ++i) {
      float& a = x[0][kInterleaved ? 2 * i : i];
      float& b = kInterleaved ? x[0][2 * i + 1] : x[!kInterleaved][i];
      const float rotated = a * cos[i] - b * sin[i];
      b = a * sin[i] + b * cos[i];
      a = rotated;
    }
    RETNET_UNROLL
    for (int i = 0; i < (kInterleaved ? 1 : 2); ++i) parts[i] = prim::pack<kDtype>(x[i]);
  }
};

template <DType kDtype, int kVector, bool kInterleaved>
__global__ void __launch_bounds__(kRotaryBlock, kRotaryOccupancy)
    rotary_kernel(const RotaryParams p) {
  using Packet = RotaryPacket<kDtype, kVector, kInterleaved>;
  constexpr int kHeads = kInterleaved ? 4 : 2;  // heads in flight
  static_assert(kRotaryHeads % kHeads == 0);
  const int64_t half_dim = p.head_dim_qk / 2;
  const auto columns =
      static_cast<uint32_t>(kInterleaved ? p.head_dim_qk / kVector : half_dim / kVector);
  const auto groups = static_cast<uint32_t>((p.heads + kRotaryHeads - 1) / kRotaryHeads);
  // Indices fit into 32 bits (supports_rotary), in which a division is several times cheaper.
  const uint32_t index = blockIdx.x * kRotaryBlock + threadIdx.x;
  const uint32_t item = index / columns, column = (index - item * columns) * kVector;
  const uint32_t token = item / groups, first = (item - token * groups) * kRotaryHeads;
  const auto b = static_cast<uint32_t>(token / static_cast<uint32_t>(p.tokens));
  const uint32_t t = token - b * static_cast<uint32_t>(p.tokens);
  if (b >= p.batch) return;

  const int64_t at = b * p.positions_stride_b + t * p.positions_stride_t;
  const double position =
      p.positions_64 ? static_cast<double>(static_cast<const int64_t*>(p.positions_ptr)[at])
                     : static_cast<const int32_t*>(p.positions_ptr)[at];
  float cos[Packet::kPairs], sin[Packet::kPairs];
  RETNET_UNROLL
  for (int i = 0; i < Packet::kPairs; ++i) {
    const uint32_t pair = (kInterleaved ? column / 2 : column) + i;
    prim::cos_sin(position * p.frequencies_ptr[pair], cos[i], sin[i]);
    if (p.inverse) sin[i] = -sin[i];
  }

  const int64_t out = static_cast<int64_t>(token) * p.heads * p.head_dim_qk + column;
  const RotaryOperand operands[2] = {p.q, p.k};
  for (int64_t h = first; h < first + kRotaryHeads && h < p.heads; h += kHeads) {
    Packet packets[2][kHeads];
    RETNET_UNROLL
    for (int o = 0; o < 2; ++o) {
      const RotaryOperand& x = operands[o];
      if (x.in_ptr == nullptr) continue;
      RETNET_UNROLL
      for (int i = 0; i < kHeads; ++i) {
        if (h + i >= p.heads) continue;
        packets[o][i].load(
            x.in_ptr, b * x.stride_b + t * x.stride_t + (h + i) * x.stride_h + column, half_dim);
      }
    }
    RETNET_UNROLL
    for (int o = 0; o < 2; ++o) {
      const RotaryOperand& x = operands[o];
      if (x.in_ptr == nullptr) continue;
      RETNET_UNROLL
      for (int i = 0; i < kHeads; ++i) {
        if (h + i >= p.heads) continue;
        packets[o][i].rotate(cos, sin);
        packets[o][i].store(x.out_ptr, out + (h + i) * p.head_dim_qk, half_dim);
      }
    }
  }
}

template <DType kDtype, int kVector>
cudaError_t rotary_launch(const RotaryParams& params, cudaStream_t stream) {
  const int64_t threads = params.batch * params.tokens * rotary_threads_per_token(params, kVector);
  const auto blocks = static_cast<unsigned>((threads + kRotaryBlock - 1) / kRotaryBlock);
  const auto kernel = params.interleaved ? rotary_kernel<kDtype, kVector, true>
                                         : rotary_kernel<kDtype, kVector, false>;
  return prim::launch(kernel, blocks, kRotaryBlock, stream, params);
}

}  // namespace retnet::kernels::cuda
