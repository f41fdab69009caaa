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
  std::atomic<int64_t> next{0};
  const auto work = [&](int64_t, int64_t) {
    const auto scratch = c10::GetCPUAllocator()->allocate(scratch_bytes);
    for (int64_t i; (i = next.fetch_add(1)) < num_tasks;) task(i, scratch.get());
  };
  at::parallel_for(0, std::min<int64_t>(num_tasks, at::get_num_threads()), 1, work);
}

}  // namespace retnet::ops::cpu
