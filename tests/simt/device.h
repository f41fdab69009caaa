// SPDX-License-Identifier: Apache-2.0
//
// The functions that emulated kernels call, by the names in emulate.h. Each acts for the CUDA thread
// that is running (or for whole warps and blocks, once enough threads have called), and checks
// before it acts. The return address of the caller identifies the instruction, so these functions
// must be called from always-inlined code.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace retnet::simt {

// They are returned by value and constant for the life of a thread, so the compiler may keep them in
// registers.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) dim3 block_dim();
__attribute__((const)) dim3 grid_dim();

// Returns the array of the block with this size that belongs to `key`. It is the same for all threads
// and uninitialised.
void* static_shared(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared();
uint32_t shared_address(const void* ptr);

// Makes one access of `bytes` bytes. The address must be a multiple of them.
void load(void* dst, const void* src, size_t bytes);
void store(void* dst, const void* src, size_t bytes);

void block_barrier();
void named_barrier(int id, int threads, bool wait);
void warp_barrier();
enum class Shuffle : int { kIndex, kXor, kUp, kDown };
uint32_t shuffle(uint32_t value, int operand, Shuffle mode);

int cluster_rank();
void cluster_barrier();
void cluster_store(void* shared, int rank, float value);  // into the same place of another block

void async_copy(uint32_t dst, const void* src, int bytes, int src_bytes);
void async_commit();
void async_wait(int groups);

void load_matrices(uint32_t* registers, uint32_t address, int count, bool transposed);
enum class Half : int { kBFloat16, kFloat16 };
void multiply_accumulate(float* d, const uint32_t* a, const uint32_t* b, Half type);

// Runs trampoline(arguments) as each thread of each block on the Simulator in use.
struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t dynamic_shared = 0;
  unsigned cluster = 1;  // consecutive blocks that run at the same time
  const void* kernel = nullptr;
  cudaStream_t stream = nullptr;
};
using Launch = cudaError_t (*)(const LaunchShape& shape, void (*trampoline)(const void*),
                               const void* arguments, size_t argument_bytes);
cudaError_t launch(const LaunchShape& shape, void (*trampoline)(const void*), const void* arguments,
                   size_t argument_bytes);
LaunchShape shape_of(const cudaLaunchConfig_t& config, const void* kernel);

}  // namespace retnet::simt
