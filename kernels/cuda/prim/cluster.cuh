// SPDX-License-Identifier: Apache-2.0
//
// Clusters: up to 8 consecutive blocks that run at the same time and reach each other's shared memory, from
// sm_90 on. prim/cuda.cuh includes this file. It is part of the surface that the SIMT emulator supplies.
#pragma once

#include "kernels/cuda/prim/cuda.cuh"

namespace retnet::kernels::cuda::prim {

// Whether the architecture has what follows. If it has not, calls compile to nothing.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
inline constexpr bool kHasClusters = true;
#else
inline constexpr bool kHasClusters = false;
#endif

// The number of this block in its cluster.
RETNET_DEVICE int cluster_rank() {
  uint32_t rank = 0;
  if constexpr (kHasClusters) asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
}

// Like sync_block, for all threads of all blocks of the cluster. One call comes before the first store into
// another block, because that block may not have started. One comes after the last store, because that
// block must not end before it.
RETNET_DEVICE void sync_cluster() {
  if constexpr (kHasClusters) {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
}

// Stores into the shared memory of block `rank` of the cluster, at the place where this block has `shared`.
RETNET_DEVICE void store_cluster(float* shared, int rank, float value) {
  if constexpr (kHasClusters) {
    const auto own = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile(
        "{\n.reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "st.shared::cluster.f32 [remote], %2;\n}" ::"r"(own),
        "r"(rank), "f"(value)
        : "memory");
  }
}

}  // namespace retnet::kernels::cuda::prim
