// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace retnet::ops::cpu {

/// task(i, scratch) for i in [0, num_tasks) by torch's threads, each with scratch memory of its
/// own. A thread takes the next task when it is done with one, so that unequal tasks share out.
template <class Task>
void run_tasks(int64_t num_tasks, size_t scratch_bytes, const Task& task) {
  constexpr size_t kLine = 64;  // of the cache: threads share none
  const auto bytes = (scratch_bytes + kLine - 1) / kLine * kLine;
  const auto threads = std::min<int64_t>(num_tasks, at::get_num_threads());
  // In one block of this thread: in the heaps of others, blocks that come and go leave gaps.
  const auto scratch = c10::GetCPUAllocator()->allocate(threads * bytes);
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t thread, int64_t) {
    auto* memory = static_cast<char*>(scratch.get()) + thread * bytes;
    for (int64_t i; (i = next.fetch_add(1)) < num_tasks;) task(i, memory);
  });
}

}  // namespace retnet::ops::cpu
