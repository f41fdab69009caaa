// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "simt/runtime/symbols.h"

namespace retnet::simt {

class Block;

// What a thread knows of the others. Entry t is the latest clock of thread t whose effects are
// visible to it. It is shared and immutable, because a barrier gives all of its threads the same.
using Clocks = std::shared_ptr<const std::vector<uint32_t>>;

struct AsyncCopy {
  uint32_t dst;
  const std::byte* src;
  uint8_t bytes;
  uint8_t src_bytes;
  Pc pc;
};

enum class LaneState : uint8_t { kReady, kAtBarrier, kAtCollective, kDone };

// One CUDA thread.
struct Lane {
  Block* block = nullptr;
  int thread = 0;
  int warp = 0;
  int lane = 0;
  uint3 index{};
  uintptr_t stack = 0;
  void* stack_pointer = nullptr;

  LaneState state = LaneState::kDone;
  const char* waits_at = "";
  Pc waits_pc = 0;
  int waits_id = 0;
  const void* argument = nullptr;  // of the collective it waits at

  uint32_t clock = 1;  // of its own; advances wherever it publishes what it did before
  Clocks clocks;
  const uint32_t* seen = nullptr;  // into clocks

  std::vector<AsyncCopy> open;                 // not yet committed
  std::vector<std::vector<AsyncCopy>> groups;  // committed, the oldest first

  bool knows(int other, uint32_t at) const { return other == thread || seen[other] >= at; }
  void learn(const Clocks& joined) {
    clocks = joined;
    seen = joined->data();
  }
};

// The lane whose kernel code is running on this OS thread. It is null inside the runtime, so that
// code that the linker took from an instrumented file is not checked there.
extern thread_local Lane* running_lane __attribute__((tls_model("initial-exec")));

}  // namespace retnet::simt
