// SPDX-License-Identifier: Apache-2.0
//
// One kernel for each fault that the checker must detect, written as the real kernels are. kBug
// injects the bug. Without it, the same kernel must give no finding.
#include "simt/bug_kernels.h"

#include <iterator>

#include "kernels/cuda/prim/prim.cuh"

namespace retnet::simt {
namespace {

namespace prim = kernels::cuda::prim;
using kernels::cuda::DType;

struct Params {
  const float* in;
  float* out;
  int four;  // 4, unknown to the compiler
};

RETNET_DEVICE int global_index() { return blockIdx.x * kBugThreads + threadIdx.x; }

// Barriers and shared memory

template <bool kBug>
__global__ void barrier_before_use(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads]);
  sX[threadIdx.x] = p.in[global_index()];
  if (!kBug) prim::sync_block();
  p.out[global_index()] = sX[kBugThreads - 1 - threadIdx.x];
}

template <bool kBug>
__global__ void barrier_before_refill(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads]);
  float sum = 0;
  for (int i = 0; i < p.four; ++i) {
    sX[threadIdx.x] = p.in[global_index()] * i;
    prim::sync_block();
    sum += sX[kBugThreads - 1 - threadIdx.x];
    if (!kBug) prim::sync_block();
  }
  p.out[global_index()] = sum;
}

template <bool kBug>
__global__ void shared_written_twice(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads]);
  sX[threadIdx.x] = 0;
  if (!kBug) prim::sync_block();
  sX[threadIdx.x ^ 32] = p.in[global_index()];
  prim::sync_block();
  p.out[global_index()] = sX[threadIdx.x];
}

// Neighbouring bf16 elements belong to different threads, which is no race. A shift by one is a race.
template <bool kBug>
__global__ void adjacent_halves(Params p) {
  RETNET_SHARED(uint16_t, sX, [kBugThreads + 1]);
  if (threadIdx.x == 0) sX[kBugThreads] = 0;
  const auto value = static_cast<uint16_t>(p.in[global_index()]);
  sX[threadIdx.x] = value;
  p.out[global_index()] = sX[threadIdx.x + (kBug ? 1 : 0)];
}

template <bool kBug>
__global__ void sync_warp_after_write(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads]);
  sX[threadIdx.x] = p.in[global_index()];
  if (!kBug) prim::sync_warp();
  p.out[global_index()] = sX[threadIdx.x ^ 31];
}

template <bool kBug>
__global__ void uninitialised_shared(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads + 1]);
  sX[threadIdx.x] = p.in[global_index()];
  prim::sync_block();
  p.out[global_index()] = sX[threadIdx.x + (kBug ? 1 : 0)];
}

template <bool kBug>
__global__ void shared_out_of_bounds(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads]);
  float* const x = sX;  // the array's size is lost
  x[threadIdx.x] = p.in[global_index()];
  prim::sync_block();
  p.out[global_index()] = x[threadIdx.x + (kBug ? p.four : 0)];
}

template <bool kBug>
__global__ void unmatched_barrier(Params p) {
  p.out[global_index()] = p.in[global_index()];
  if (kBug && threadIdx.x >= 32) return;
  prim::sync_block();
}

template <bool kBug>
__global__ void divergent_barrier(Params p) {
  float x = p.in[global_index()];
  if (kBug && threadIdx.x % 32 < 16) {
    x += 1;
    prim::sync_block();
  } else {
    x *= 2;
    prim::sync_block();
  }
  p.out[global_index()] = x;
}

// Warp 0 hands a value to warp 1.
template <bool kBug>
__global__ void named_barrier_never_reached(Params p) {
  RETNET_SHARED(float, sX, [32]);
  float x = p.in[global_index()];
  if (threadIdx.x < 32) {
    sX[threadIdx.x] = x;
    if (!kBug) prim::bar_arrive(1, 64);
  } else {
    prim::bar_sync(1, 64);
    x = sX[threadIdx.x - 32];
  }
  p.out[global_index()] = x;
}

template <bool kBug>
__global__ void named_barrier_left_over(Params p) {
  if (kBug && threadIdx.x < 32) prim::bar_arrive(1, 64);
  p.out[global_index()] = p.in[global_index()];
}

template <bool kBug>
__global__ void named_barrier_of_odd_count(Params p) {
  prim::bar_sync(2, kBug ? 48 : 64);
  p.out[global_index()] = p.in[global_index()];
}

// Shuffles

template <bool kBug>
__global__ void unmatched_shuffle(Params p) {
  float x = p.in[global_index()];
  if (!kBug || threadIdx.x % 32 < 16) x += prim::shuffle_xor(x, 1);
  p.out[global_index()] = x;
}

template <bool kBug>
__global__ void divergent_shuffle(Params p) {
  float x = p.in[global_index()];
  if (kBug && threadIdx.x % 32 < 16) {
    x += prim::shuffle_xor(x, 1);
  } else {
    x -= prim::shuffle_xor(x, 2);
  }
  p.out[global_index()] = x;
}

template <bool kBug>
__global__ void shuffle_meets_sync_warp(Params p) {
  float x = p.in[global_index()];
  if (!kBug || threadIdx.x % 32 < 16) {
    x += prim::shuffle_xor(x, 1);
  } else {
    prim::sync_warp();
  }
  p.out[global_index()] = x;
}

template <bool kBug>
__global__ void shuffle_from_no_lane(Params p) {
  p.out[global_index()] = prim::shuffle(p.in[global_index()], kBug ? p.four * 8 : 31);
}

// cp.async

template <bool kBug>
__global__ void wait_for_copy(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads]);
  prim::cp_async<4>(prim::smem_u32(&sX[threadIdx.x]), p.in + global_index(), 4);
  prim::cp_async_commit();
  if (!kBug) prim::cp_async_wait<0>();
  prim::sync_block();
  p.out[global_index()] = sX[threadIdx.x ^ 1];
  prim::cp_async_wait<0>();
}

// Two stages are in flight, and the older one is used.
template <bool kBug>
__global__ void wait_for_enough_groups(Params p) {
  RETNET_SHARED(float, sX, [2][kBugThreads]);
  for (int stage = 0; stage < 2; ++stage) {
    prim::cp_async<4>(prim::smem_u32(&sX[stage][threadIdx.x]), p.in + global_index(), 4);
    prim::cp_async_commit();
  }
  prim::cp_async_wait<kBug ? 2 : 1>();
  prim::sync_block();
  p.out[global_index()] = sX[0][threadIdx.x ^ 1];
  prim::cp_async_wait<0>();
}

// The wait of a thread covers only its own copies.
template <bool kBug>
__global__ void barrier_after_wait(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads]);
  prim::cp_async<4>(prim::smem_u32(&sX[threadIdx.x]), p.in + global_index(), 4);
  prim::cp_async_commit();
  if (kBug) prim::sync_block();
  prim::cp_async_wait<0>();
  if (!kBug) prim::sync_block();
  p.out[global_index()] = sX[threadIdx.x ^ 32];
}

template <bool kBug>
__global__ void write_over_copy(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads]);
  prim::cp_async<4>(prim::smem_u32(&sX[threadIdx.x]), p.in + global_index(), 4);
  prim::cp_async_commit();
  if (kBug) sX[threadIdx.x] = 0;
  prim::cp_async_wait<0>();
  p.out[global_index()] = sX[threadIdx.x];
}

template <bool kBug>
__global__ void copy_pending_at_exit(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads]);
  prim::cp_async<4>(prim::smem_u32(&sX[threadIdx.x]), p.in + global_index(), 4);
  prim::cp_async_commit();
  p.out[global_index()] = p.in[global_index()];
  if (!kBug) prim::cp_async_wait<0>();
}

template <bool kBug>
__global__ void copy_past_the_input(Params p) {
  RETNET_SHARED(float, sX, [kBugThreads][4]);
  const int first = blockIdx.x * kBugThreads + threadIdx.x / 4 * 4 + (kBug ? 4 : 0);
  prim::cp_async<16>(prim::smem_u32(sX[threadIdx.x]), p.in + first, 16);
  prim::cp_async_commit();
  prim::cp_async_wait<0>();
  p.out[global_index()] = sX[threadIdx.x][threadIdx.x % 4];
}

// ldmatrix: each warp loads one 8 x 8 matrix of 16-bit elements from rows of 16 bytes.
template <bool kBug, class Change>
RETNET_DEVICE void load_one_matrix(Params p, bool barrier, const Change& change) {
  RETNET_DYNAMIC_SHARED(smem);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const uint32_t value = static_cast<uint32_t>(p.in[global_index()]);
  auto* words = reinterpret_cast<uint32_t*>(smem) + warp * 32;
  words[lane] = value;
  if (barrier) prim::sync_warp();
  uint32_t address = prim::smem_u32(smem) + warp * 128 + lane % 8 * 16;
  if (kBug) address = change(address);
  uint32_t r[1];
  prim::ldmatrix_x1(r, address);
  p.out[global_index()] = static_cast<float>(r[0]);
}

template <bool kBug>
__global__ void ldmatrix_out_of_range(Params p) {
  load_one_matrix<kBug>(p, true, [](uint32_t address) { return address + 128; });
}
template <bool kBug>
__global__ void ldmatrix_misaligned(Params p) {
  load_one_matrix<kBug>(p, true, [](uint32_t address) { return address + 8; });
}
template <bool kBug>
__global__ void ldmatrix_without_barrier(Params p) {
  load_one_matrix<kBug>(p, !kBug, [](uint32_t address) { return address; });
}

// Each lane writes the row whose address it gives, and the others receive it.
template <bool kBug>
__global__ void ldmatrix_of_own_row(Params p) {
  RETNET_SHARED(uint32_t, sX, [kBugThreads][4]);
  const uint32_t words[4] = {static_cast<uint32_t>(p.in[global_index()]), 1, 2, 3};
  prim::store(sX[threadIdx.x], words);
  if (!kBug) prim::sync_warp();
  uint32_t r[4];
  prim::ldmatrix_x4(r, prim::smem_u32(sX[threadIdx.x]));
  p.out[global_index()] = static_cast<float>(r[0] + r[3]);
}

template <bool kBug>
__global__ void divergent_mma(Params p) {
  float d[4] = {p.in[global_index()], 0, 0, 0};
  const uint32_t a[4] = {};
  if (kBug && threadIdx.x % 32 < 16) {
    prim::mma<DType::kBFloat16>(d, a, 0, 0);
  } else {
    d[1] = 1;
    prim::mma<DType::kBFloat16>(d, a, 0, 1);
  }
  p.out[global_index()] = d[0];
}

// Global memory

template <bool kBug>
__global__ void read_past_the_input(Params p) {
  p.out[global_index()] = p.in[global_index() + (kBug ? 1 : 0)];
}

template <bool kBug>
__global__ void write_past_the_output(Params p) {
  p.out[global_index()] = 0;
  if (kBug && global_index() == 0) p.out[kBugBlocks * kBugThreads] = 0;
}

template <bool kBug>
__global__ void wild_read(Params p) {
  p.out[global_index()] = p.in[global_index() + (kBug ? static_cast<int64_t>(p.four) << 40 : 0)];
}

template <bool kBug>
__global__ void write_to_the_input(Params p) {
  p.out[global_index()] = p.in[global_index()];
  if (kBug) const_cast<float*>(p.in)[global_index()] = 0;
}

template <bool kBug>
__global__ void two_blocks_write(Params p) {
  p.out[global_index()] = p.in[global_index()];
  if (kBug) p.out[threadIdx.x] = p.in[global_index()];
}

template <bool kBug>
__global__ void block_reads_anothers_output(Params p) {
  p.out[global_index()] = p.in[global_index()];
  if (kBug) p.out[global_index()] += p.out[global_index() ^ kBugThreads];
}

template <bool kBug>
__global__ void threads_share_an_output(Params p) {
  p.out[global_index()] = p.in[global_index()];
  if (!kBug) prim::sync_block();
  if (threadIdx.x == 0) p.out[global_index()] += p.out[global_index() + 1];
}

template <bool kBug>
__global__ void output_read_before_written(Params p) {
  const float old = kBug ? p.out[global_index()] : 0;
  p.out[global_index()] = old + p.in[global_index()];
}

template <bool kBug>
__global__ void output_not_written(Params p) {
  if (kBug && global_index() == kBugThreads + 5) return;
  p.out[global_index()] = p.in[global_index()];
}

// The language

template <bool kBug>
__global__ void misaligned_load(Params p) {
  uint32_t words[4];
  prim::load_readonly(words, p.in + threadIdx.x / 4 * 4 + (kBug ? 1 : 0));
  p.out[global_index()] = prim::word_to_float(words[threadIdx.x % 4]);
}

template <bool kBug>
__global__ void misaligned_vector(Params p) {
  const auto* vector = reinterpret_cast<const float4*>(p.in + threadIdx.x / 4 * 4 + (kBug ? 1 : 0));
  const float4 v = *vector;
  p.out[global_index()] = v.x + v.w;
}

template <bool kBug>
__global__ void register_array_overrun(Params p) {
  float r[4] = {};
  for (int i = 0; i < p.four; ++i) r[i] = p.in[global_index()] * i;
  float sum = 0;
  for (int i = 0; i < p.four + (kBug ? 1 : 0); ++i) sum += r[i];
  p.out[global_index()] = sum;
}

template <bool kBug>
__global__ void shift_too_far(Params p) {
  p.out[global_index()] = static_cast<float>(1u << (p.four * (kBug ? 8 : 1)));
}

template <bool kBug>
__global__ void index_overflow(Params p) {
  const int stride = kBug ? p.four << 28 : p.four;
  p.out[global_index()] = static_cast<float>(stride * p.four);
}

template <bool kBug>
__global__ void too_much_shared(Params p) {
  RETNET_SHARED(float, sX, [kBug ? 12000 : 64]);  // beside 181 KB of dynamic shared memory
  sX[threadIdx.x] = p.in[global_index()];
  p.out[global_index()] = sX[threadIdx.x];
}

// Launches one of two instantiations.
template <auto kRight, auto kWrong, size_t kDynamicShared = 0>
cudaError_t run(bool bug, const float* in, float* out) {
  return prim::launch(bug ? kWrong : kRight, dim3(kBugBlocks), kBugThreads, kDynamicShared, nullptr,
                      Params{in, out, 4});
}

#define CASE(kernel, expected) \
  BugCase { #kernel, FindingKind::expected, &run < &kernel < false>, &kernel < true>> }
#define CASE_DYNAMIC(kernel, expected, bytes) \
  BugCase { #kernel, FindingKind::expected, &run < &kernel < false>, &kernel < true>, bytes> }
constexpr BugCase kCases[] = {
    CASE(barrier_before_use, kSharedReadAfterWrite),
    CASE(barrier_before_refill, kSharedWriteAfterRead),
    CASE(shared_written_twice, kSharedWriteAfterWrite),
    CASE(adjacent_halves, kSharedReadAfterWrite),
    CASE(sync_warp_after_write, kSharedReadAfterWrite),
    CASE(uninitialised_shared, kSharedUninitialised),
    CASE(shared_out_of_bounds, kSharedOutOfBounds),
    CASE_DYNAMIC(too_much_shared, kSharedTooLarge, 181 << 10),
    CASE(unmatched_barrier, kUnmatchedBarrier),
    CASE(divergent_barrier, kDivergentBarrier),
    CASE(named_barrier_never_reached, kUnmatchedBarrier),
    CASE(named_barrier_left_over, kUnmatchedBarrier),
    CASE(named_barrier_of_odd_count, kBadBarrier),
    CASE(unmatched_shuffle, kUnmatchedCollective),
    CASE(divergent_shuffle, kDivergentCollective),
    CASE(shuffle_meets_sync_warp, kDivergentCollective),
    CASE(shuffle_from_no_lane, kBadShuffle),
    CASE(wait_for_copy, kAsyncInFlight),
    CASE(wait_for_enough_groups, kAsyncInFlight),
    CASE(barrier_after_wait, kSharedReadAfterWrite),
    CASE(write_over_copy, kAsyncInFlight),
    CASE(copy_pending_at_exit, kAsyncPendingAtExit),
    CASE(copy_past_the_input, kGlobalOutOfBounds),
    CASE_DYNAMIC(ldmatrix_out_of_range, kSharedOutOfBounds, 256),
    CASE_DYNAMIC(ldmatrix_misaligned, kMisaligned, 272),
    CASE_DYNAMIC(ldmatrix_without_barrier, kSharedReadAfterWrite, 256),
    CASE(ldmatrix_of_own_row, kSharedReadAfterWrite),
    CASE(divergent_mma, kDivergentCollective),
    CASE(read_past_the_input, kGlobalOutOfBounds),
    CASE(write_past_the_output, kGlobalOutOfBounds),
    CASE(wild_read, kGlobalOutOfBounds),
    CASE(write_to_the_input, kGlobalReadOnly),
    CASE(two_blocks_write, kGlobalBlockConflict),
    CASE(block_reads_anothers_output, kGlobalBlockConflict),
    CASE(threads_share_an_output, kGlobalRace),
    CASE(output_read_before_written, kGlobalUninitialised),
    CASE(output_not_written, kUnwrittenOutput),
    CASE(misaligned_load, kMisaligned),
    CASE(misaligned_vector, kMisaligned),
    CASE(register_array_overrun, kArrayBounds),
    CASE(shift_too_far, kArithmetic),
    CASE(index_overflow, kArithmetic),
};

}  // namespace

std::vector<BugCase> bug_cases() {
  std::vector<BugCase> all(std::begin(kCases), std::end(kCases));
  const std::span<const BugCase> of_clusters = cluster_bug_cases();
  all.insert(all.end(), of_clusters.begin(), of_clusters.end());
  return all;
}

}  // namespace retnet::simt
