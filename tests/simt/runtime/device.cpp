// SPDX-License-Identifier: Apache-2.0
//
// The functions that emulated kernels call (device.h), except tensor-core instructions.
#include "simt/device.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "simt/runtime/block.h"

// A macro: the address to which the kernel's own call returns.
#define RETNET_CALLER ::retnet::simt::to_pc(__builtin_return_address(0))

namespace retnet::simt {

uint3 thread_index() { return running_lane->index; }
uint3 block_index() { return running_lane->block->index(); }
dim3 block_dim() { return running_lane->block->launch().shape.block; }
dim3 grid_dim() { return running_lane->block->launch().shape.grid; }

void* static_shared(const void* key, size_t bytes, size_t alignment) {
  const Runtime runtime;
  return runtime.block.shared().static_array(key, bytes, alignment);
}

void* dynamic_shared() {
  const Runtime runtime;
  return runtime.block.shared().dynamic();
}

uint32_t shared_address(const void* ptr) {
  const Pc pc = RETNET_CALLER;
  const Runtime runtime;
  const auto address = reinterpret_cast<uintptr_t>(ptr);
  if (!runtime.block.shared().contains(address)) {
    runtime.block.launch().findings.add(
        FindingKind::kSharedOutOfBounds, place_of(runtime.lane), pc, 0,
        [] { return std::string("smem_u32 of an address that is not in shared memory"); });
    runtime.block.abandon(runtime.lane);
  }
  return runtime.block.shared().offset(address);
}

namespace {

void access(const Runtime& runtime, const void* ptr, size_t bytes, bool is_write, Pc pc) {
  const auto address = reinterpret_cast<uintptr_t>(ptr);
  if (address - runtime.lane.stack < runtime.block.launch().options.stack_bytes) return;
  runtime.block.access(runtime.lane, address, static_cast<int>(bytes), is_write, true, pc);
}

}  // namespace

void load(void* dst, const void* src, size_t bytes) {
  const Pc pc = RETNET_CALLER;
  const Runtime runtime;
  access(runtime, src, bytes, false, pc);
  std::memcpy(dst, src, bytes);
}

void store(void* dst, const void* src, size_t bytes) {
  const Pc pc = RETNET_CALLER;
  const Runtime runtime;
  access(runtime, dst, bytes, true, pc);
  const auto address = reinterpret_cast<uintptr_t>(dst);
  const GlobalArray* array = runtime.block.launch().memory.find(address, static_cast<int>(bytes));
  // A write to an input has been reported. Later reads must not depend on it.
  if (array == nullptr || array->writable()) std::memcpy(dst, src, bytes);
}

void block_barrier() {
  const Pc pc = RETNET_CALLER;
  const Runtime runtime;
  runtime.block.barrier(runtime.lane, 0, -1, true, pc);
}

void named_barrier(int id, int threads, bool wait) {
  const Pc pc = RETNET_CALLER;
  const Runtime runtime;
  runtime.block.barrier(runtime.lane, id, threads < 0 ? 0 : threads, wait, pc);
}

void warp_barrier() {
  const Pc pc = RETNET_CALLER;
  const Runtime runtime;
  runtime.block.collective(runtime.lane, "sync_warp", nullptr, pc,
                           [](Block& block, std::span<Lane> warp, Pc) { block.order_warp(warp); });
}

namespace {

struct ShuffleArgument {
  uint32_t value;
  int operand;
  Shuffle mode;
  mutable uint32_t result = 0;

  int source(int lane) const {
    switch (mode) {
      case Shuffle::kIndex:
        return operand;
      case Shuffle::kXor:
        return lane ^ operand;
      case Shuffle::kUp:
        return lane - operand < 0 ? lane : lane - operand;
      case Shuffle::kDown:
        return lane + operand > 31 ? lane : lane + operand;
    }
    return -1;
  }
};

void exchange(Block& block, std::span<Lane> warp, Pc pc) {
  ++block.counters().shuffles;
  const auto argument = [&](int lane) -> const ShuffleArgument& {
    return *static_cast<const ShuffleArgument*>(warp[lane].argument);
  };
  for (int lane = 0; lane < static_cast<int>(warp.size()); ++lane) {
    const int source = argument(lane).source(lane);
    if (source < 0 || source >= static_cast<int>(warp.size())) {
      block.launch().findings.add(FindingKind::kBadShuffle, place_of(warp[lane]), pc, 0,
                                  [&] { return format("from lane %d", source); });
      argument(lane).result = UINT32_MAX;
    } else {
      argument(lane).result = argument(source).value;
    }
  }
}

}  // namespace

uint32_t shuffle(uint32_t value, int operand, Shuffle mode) {
  const Pc pc = RETNET_CALLER;
  const Runtime runtime;
  const ShuffleArgument argument{value, operand, mode};
  runtime.block.collective(runtime.lane, "shuffle", &argument, pc, &exchange);
  return argument.result;
}

int cluster_rank() { return running_lane->block->rank(); }

void cluster_barrier() {
  const Pc pc = RETNET_CALLER;
  const Runtime runtime;
  runtime.block.cluster_barrier(runtime.lane, pc);
}

void cluster_store(void* shared, int rank, float value) {
  const Pc pc = RETNET_CALLER;
  const Runtime runtime;
  runtime.block.cluster().store(runtime.lane, shared, rank, value, pc);
}

void async_copy(uint32_t dst, const void* src, int bytes, int src_bytes) {
  const Pc pc = RETNET_CALLER;
  const Runtime runtime;
  Lane& lane = runtime.lane;
  Block& block = runtime.block;
  Findings& findings = block.launch().findings;
  const auto address = reinterpret_cast<uintptr_t>(src);
  if (dst % bytes != 0 || address % bytes != 0) {
    findings.add(FindingKind::kMisaligned, place_of(lane), pc, 0, [&] {
      return format("cp.async of %d bytes to shared address %u from an address %% %d = %d", bytes,
                    dst, bytes, static_cast<int>(address % bytes));
    });
    block.abandon(lane);
  }
  if (src_bytes < 0 || src_bytes > bytes) {
    findings.add(FindingKind::kGlobalOutOfBounds, place_of(lane), pc, 0,
                 [&] { return format("cp.async of %d bytes reads %d", bytes, src_bytes); });
    block.abandon(lane);
  }
  block.log(lane, AccessKind::kAsyncStore, dst, bytes, pc);
  block.log(lane, AccessKind::kGlobalLoad, address, src_bytes, pc);
  if (!block.shared().check_bounds(lane, dst, bytes, pc, "cp.async")) return;
  if (src_bytes > 0) {
    GlobalArray* array = block.launch().memory.find(address, src_bytes);
    if (array == nullptr || !array->contains(address, src_bytes)) {
      findings.add(FindingKind::kGlobalOutOfBounds, place_of(lane), pc, 0, [&] {
        return array == nullptr
                   ? format("cp.async reads %d bytes at %p, in no array", src_bytes, src)
                   : format("cp.async reads %d bytes at %s %+lld", src_bytes, array->name().c_str(),
                            static_cast<long long>(address - array->start()));
      });
      return;
    }
    array->read(lane, block.linear_index(), address, src_bytes, pc, findings);
  }
  const AsyncCopy copy{dst, static_cast<const std::byte*>(src), static_cast<uint8_t>(bytes),
                       static_cast<uint8_t>(src_bytes), pc};
  block.shared().begin_copy(lane, copy);
  lane.open.push_back(copy);
}

void async_commit() {
  const Runtime runtime;
  runtime.lane.groups.push_back(std::move(runtime.lane.open));
  runtime.lane.open.clear();
}

void async_wait(int groups) {
  const Runtime runtime;
  auto& pending = runtime.lane.groups;
  const int done = static_cast<int>(pending.size()) - groups;
  for (int i = 0; i < done; ++i) {
    for (const AsyncCopy& copy : pending[i]) runtime.block.shared().end_copy(runtime.lane, copy);
  }
  if (done > 0) pending.erase(pending.begin(), pending.begin() + done);
}

}  // namespace retnet::simt
