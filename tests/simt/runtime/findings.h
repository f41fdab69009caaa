// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "simt/report.h"
#include "simt/runtime/symbols.h"

namespace retnet::simt {

struct Place {
  uint32_t block = 0;
  int thread = -1;
};

// Collects findings from all OS threads. A broken kernel may repeat a finding a million times, so
// repetitions are counted, and only the first is described.
class Findings {
 public:
  template <class Describe>
  void add(FindingKind kind, Place place, Pc pc, Pc other, const Describe& describe) {
    const std::lock_guard lock(mutex_);
    const auto [entry, is_new] = entries_.try_emplace({kind, pc, other});
    if (!is_new) {
      ++entry->second.count;
      return;
    }
    entry->second = Finding{kind, "", "", describe(), place.block, place.thread, 1};
  }

  // Returns the findings with their locations. Findings at one source line count as one.
  std::vector<Finding> collect() const;

 private:
  mutable std::mutex mutex_;
  std::map<std::tuple<FindingKind, Pc, Pc>, Finding> entries_;
};

std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

}  // namespace retnet::simt
