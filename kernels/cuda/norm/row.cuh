// SPDX-License-Identifier: Apache-2.0
//
// What the forward and the backward kernel share: where a row, the Dv channels of one token of one head,
// lies in the registers of its threads, its statistics, and the choice of the tile.
#pragma once

#include "kernels/cuda/norm/plan.h"
#include "kernels/cuda/prim/prim.cuh"
#include "kernels/cuda/prim/reduce.cuh"

namespace retnet::kernels::cuda {

// The part of one thread of a row of up to kThreads * kGatedGroupNormElements elements. Slot s has the
// kVector elements from column(s), so that neighbouring threads access neighbouring packets.
template <DType kDtype, int kVector, int kThreads>
struct GatedGroupNormRow {
  static constexpr int kSlots = kGatedGroupNormElements / kVector;
  static constexpr int kRows = kGatedGroupNormBlock / kThreads;  // rows of a block
  using Packet = prim::Packet<kDtype, kVector>;
  using Sum = prim::RowSum<kThreads, kGatedGroupNormBlock>;

  // A thread's elements in shared memory: float32 in packets of 4, ordered [packet][thread], so that
  // neighbouring threads access neighbouring 16 bytes.
  static constexpr int kPackets = kGatedGroupNormElements / 4;
  static constexpr int kPacketsPerSlot = kVector / 4;
  static constexpr int kSharedSize = kThreads * kGatedGroupNormElements;  // of one row

  static constexpr int kSlotStride = kThreads * kVector;  // columns from a slot to the next
  // The number of columns from the first of this thread to the end of the row, or 0 if the row lies past
  // the last token. The threads of such a row only take part in sums and barriers.
  int left;
  float inverse;  // 1 / Dv

  RETNET_DEVICE GatedGroupNormRow(int head_dim_v, bool active)
      : left(active ? head_dim_v - column(0) : 0),
        inverse(prim::reciprocal(static_cast<float>(head_dim_v))) {}

  RETNET_DEVICE static int thread() { return threadIdx.x % kThreads; }
  RETNET_DEVICE static int row_of_block() { return threadIdx.x / kThreads; }
  RETNET_DEVICE static int column(int slot) { return slot * kSlotStride + thread() * kVector; }
  RETNET_DEVICE bool holds(int slot) const { return slot * kSlotStride < left; }

  // Slots that this row does not hold become zeros. A thread computes one address, and its slots lie at
  // constant distances from it.
  RETNET_DEVICE void load(Packet (&packets)[kSlots], const void* base, int64_t offset) const {
    const char* src =
        static_cast<const char*>(base) + (offset + column(0)) * prim::kElementSize<kDtype>;
    RETNET_UNROLL
    for (int s = 0; s < kSlots; ++s) {
      packets[s] =
          holds(s) ? prim::load_readonly_packet<kDtype, kVector>(src, s * kSlotStride) : Packet{};
    }
  }

  // x becomes x - mean (mean 0 for kRms). Returns 1 / sqrt(second moment about the mean + eps). The moment
  // takes a second pass over the registers, because E[x^2] - E[x]^2 would cancel.
  RETNET_DEVICE float centre(float (&x)[kSlots][kVector], Norm norm, float eps, Sum& sum) const {
    float total[1] = {0};
    float mean = 0;
    if (norm == Norm::kLayer) {
      RETNET_UNROLL
      for (int s = 0; s < kSlots; ++s) {
        RETNET_UNROLL
        for (int i = 0; i < kVector; ++i) total[0] += x[s][i];
      }
      sum(total);
      mean = total[0] * inverse;
      total[0] = 0;
    }
    RETNET_UNROLL
    for (int s = 0; s < kSlots; ++s) {
      if (!holds(s)) continue;
      RETNET_UNROLL
      for (int i = 0; i < kVector; ++i) {
        x[s][i] -= mean;
        total[0] += x[s][i] * x[s][i];
      }
    }
    sum(total);
    return prim::rsqrt(total[0] * inverse + eps);
  }

  RETNET_DEVICE static int shared_offset(int packet, int thread) {
    return (packet * kThreads + thread) * 4;
  }

  RETNET_DEVICE static void store_shared(float* shared, int slot, const float (&values)[kVector]) {
    RETNET_UNROLL
    for (int j = 0; j < kPacketsPerSlot; ++j) {
      const float quad[4] = {values[4 * j], values[4 * j + 1], values[4 * j + 2],
                             values[4 * j + 3]};
      prim::store_packet(shared, shared_offset(slot * kPacketsPerSlot + j, thread()),
                         prim::pack<DType::kFloat32>(quad));
    }
  }

  RETNET_DEVICE static void load_shared(float (&values)[kVector], const float* shared, int slot) {
    RETNET_UNROLL
    for (int j = 0; j < kPacketsPerSlot; ++j) {
      float quad[4];
      const int offset = shared_offset(slot * kPacketsPerSlot + j, thread());
      prim::unpack(prim::load_packet<DType::kFloat32, 4>(shared, offset), quad);
      RETNET_UNROLL
      for (int i = 0; i < 4; ++i) values[4 * j + i] = quad[i];
    }
  }

  // kVector elements of weight or bias.
  RETNET_DEVICE static void load_affine(float (&values)[kVector], const void* ptr, DType dtype,
                                        int64_t offset) {
    if (kDtype == DType::kFloat32 || dtype == DType::kFloat32) {
      prim::unpack(prim::load_readonly_packet<DType::kFloat32, kVector>(ptr, offset), values);
    } else {
      prim::unpack(prim::load_readonly_packet<kDtype, kVector>(ptr, offset), values);
    }
  }
};

// The error is about (|x| / 2 + 3) ulp, because x / ln 2 is rounded once.
RETNET_DEVICE float sigmoid(float x) {
  return prim::reciprocal(1.0f + prim::ex2(x * -1.44269504088896f));
}

// Calls f.operator()<threads per row>() for the tile of `head_dim_v`.
template <int kTile = 0, class F>
cudaError_t with_gated_group_norm_tile(int64_t head_dim_v, const F& f) {
  if constexpr (kTile == kGatedGroupNormTileCount) {
    return cudaErrorNotSupported;
  } else {
    if (gated_group_norm_tile(head_dim_v) == kTile) {
      return f.template operator()<kGatedGroupNormTiles[kTile].threads_per_row>();
    }
    return with_gated_group_norm_tile<kTile + 1>(head_dim_v, f);
  }
}

}  // namespace retnet::kernels::cuda
