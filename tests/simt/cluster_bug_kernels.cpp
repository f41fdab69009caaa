// SPDX-License-Identifier: Apache-2.0
//
// As bug_kernels.cpp, but for clusters. The two blocks exchange values through shared memory.
#include "kernels/cuda/prim/prim.cuh"
#include "simt/bug_kernels.h"

namespace retnet::simt {
namespace {

namespace prim = kernels::cuda::prim;

struct Params {
  const float* in;
  float* out;
  int four;  // 4, unknown to the compiler
};

RETNET_DEVICE int global_index() { return blockIdx.x * kBugThreads + threadIdx.x; }

template <bool kBug>
__global__ void cluster_store_before_start(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads]);
  if (!kBug) prim::sync_cluster();
  prim::store_cluster(&sX[threadIdx.x], 1 - prim::cluster_rank(), p.in[global_index()]);
  prim::sync_cluster();
  p.out[global_index()] = sX[threadIdx.x];
}

template <bool kBug>
__global__ void cluster_read_before_barrier(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads]);
  prim::sync_cluster();
  prim::store_cluster(&sX[threadIdx.x], 1 - prim::cluster_rank(), p.in[global_index()]);
  kBug ? prim::sync_block() : prim::sync_cluster();
  p.out[global_index()] = sX[threadIdx.x];
}

template <bool kBug>
__global__ void cluster_store_before_read(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads]);
  float sum = 0;
  for (int i = 0; i < p.four; ++i) {
    if (!kBug || i == 0) prim::sync_cluster();
    prim::store_cluster(&sX[threadIdx.x], 1 - prim::cluster_rank(), p.in[global_index()]);
    prim::sync_cluster();
    sum += sX[threadIdx.x];
  }
  p.out[global_index()] = sum;
}

template <bool kBug>
__global__ void cluster_store_before_end(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads]);
  prim::sync_cluster();
  prim::store_cluster(&sX[threadIdx.x], 1 - prim::cluster_rank(), 0);
  p.out[global_index()] = p.in[global_index()];
  if (!kBug) prim::sync_cluster();
}

template <bool kBug>
__global__ void cluster_barrier_of_one_block(Params p) {
  p.out[global_index()] = p.in[global_index()];
  if (!kBug || prim::cluster_rank() == 0) prim::sync_cluster();
}

template <auto kRight, auto kWrong>
cudaError_t run_cluster(bool bug, const float* in, float* out) {
  return prim::launch_clusters(bug ? kWrong : kRight, kBugBlocks, kBugBlocks, kBugThreads, 0,
                               nullptr, Params{in, out, 4});
}

#define CASE_CLUSTER(kernel, expected) \
  BugCase { #kernel, FindingKind::expected, &run_cluster < &kernel < false>, &kernel < true>> }

constexpr BugCase kCases[] = {
    CASE_CLUSTER(cluster_store_before_start, kClusterAbsent),
    CASE_CLUSTER(cluster_read_before_barrier, kSharedReadAfterWrite),
    CASE_CLUSTER(cluster_store_before_read, kSharedWriteAfterRead),
    CASE_CLUSTER(cluster_store_before_end, kClusterAbsent),
    CASE_CLUSTER(cluster_barrier_of_one_block, kUnmatchedBarrier),
};

}  // namespace

std::span<const BugCase> cluster_bug_cases() { return kCases; }

}  // namespace retnet::simt
