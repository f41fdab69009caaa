// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/prim/prim.cuh"

namespace retnet::kernels::cuda::prim {

// Sums over the threads that share a row, which are kThreads consecutive threads (a power of two) of a
// block of kBlock. The order of the additions is fixed, and every thread of the row receives the same bits.
//
// All threads of the block must call, the same number of times. Rows inside a warp only use shuffles. Wider
// rows add one block barrier a call. Each warp writes its sum to the half of the shared array of this call's
// parity before the barrier, and all read it after the barrier. That half is written again two calls later,
// behind the next call's barrier, which no thread passes before all have read.
template <int kThreads, int kBlock>
class RowSum {
 public:
  static constexpr int kMaxValues = 2;  // sums taken together in one call
  using Shared = float[2][kBlock / 32][kMaxValues];
  static_assert((kThreads & (kThreads - 1)) == 0 && kBlock % 32 == 0 && kBlock % kThreads == 0);

  RETNET_DEVICE explicit RowSum(Shared& shared) : shared_(shared) {}

  template <int kValues>
  RETNET_DEVICE void operator()(float (&values)[kValues]) {
    static_assert(kValues <= kMaxValues);
    RETNET_UNROLL
    for (int mask = 1; mask < (kThreads < 32 ? kThreads : 32); mask *= 2) {
      RETNET_UNROLL
      for (int i = 0; i < kValues; ++i) values[i] += shuffle_xor(values[i], mask);
    }
    if constexpr (kThreads > 32) {
      const int warp = threadIdx.x / 32;
      if (threadIdx.x % 32 == 0) {
        RETNET_UNROLL
        for (int i = 0; i < kValues; ++i) shared_[parity_][warp][i] = values[i];
      }
      sync_block();
      const int first_warp = threadIdx.x / kThreads * (kThreads / 32);
      RETNET_UNROLL
      for (int i = 0; i < kValues; ++i) {
        values[i] = 0;
        RETNET_UNROLL
        for (int w = 0; w < kThreads / 32; ++w) values[i] += shared_[parity_][first_warp + w][i];
      }
      parity_ ^= 1;
    }
  }

 private:
  Shared& shared_;
  int parity_ = 0;
};

}  // namespace retnet::kernels::cuda::prim
