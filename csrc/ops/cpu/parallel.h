// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace retnet::ops::cpu {

/// Runs task(i, workspace) for i in [0, num_tasks) on the threads of torch, each with a workspace
/// of its own. A thread that has finished a task takes the next one, so that unequal tasks spread
/// evenly.
template <class Task>
void run_tasks(int64_t num_tasks, size_t workspace_bytes, const Task& task) {
  constexpr size_t kLine = 64;  // bytes of a cache line; no two threads share one
  const auto bytes = (workspace_bytes + kLine - 1) / kLine * kLine;
  const auto threads = std::min<int64_t>(num_tasks, at::get_num_threads());
  // This thread allocates one block for all threads. In their own heaps, blocks that come and go
  // would leave gaps.
  const auto memory = c10::GetCPUAllocator()->allocate(threads * bytes);
  std::atomic<int64_t> next{0};
  at::parallel_for(0, threads, 1, [&](int64_t thread, int64_t) {
    auto* workspace = static_cast<char*>(memory.get()) + thread * bytes;
    for (int64_t i; (i = next.fetch_add(1)) < num_tasks;) task(i, workspace);
  });
}

}  // namespace retnet::ops::cpu
