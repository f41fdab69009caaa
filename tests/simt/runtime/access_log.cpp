// SPDX-License-Identifier: Apache-2.0
#include "simt/runtime/access_log.h"

#include <algorithm>
#include <bit>

namespace retnet::simt {
namespace {

// Distinct 32-byte sectors that the lanes of `mask` touch.
int sectors(const uint64_t (&addresses)[32], uint32_t mask, int bytes) {
  uint64_t touched[32 * 2];
  int size = 0;
  bool ascending = true;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    const uint64_t last = (addresses[lane] + bytes - 1) / 32;
    for (uint64_t sector = addresses[lane] / 32; sector <= last; ++sector) {
      if (size > 0 && touched[size - 1] == sector) continue;
      ascending = ascending && (size == 0 || touched[size - 1] < sector);
      touched[size++] = sector;
    }
  }
  if (ascending) return size;
  std::sort(touched, touched + size);
  return static_cast<int>(std::unique(touched, touched + size) - touched);
}

}  // namespace

int wavefronts(const uint64_t (&addresses)[32], uint32_t mask, int bytes, int& minimum) {
  const int lanes = bytes <= 4 ? 32 : 128 / bytes;  // served together
  int total = 0;
  minimum = 0;
  for (int first = 0; first < 32; first += lanes) {
    // The distinct words of each bank; a wavefront takes one of each.
    uint64_t words[32][32];
    uint8_t counts[32] = {};
    int most = 0;
    for (int lane = first; lane < first + lanes; ++lane) {
      if ((mask >> lane & 1u) == 0) continue;
      const uint64_t last = (addresses[lane] + bytes - 1) / 4;
      for (uint64_t word = addresses[lane] / 4; word <= last; ++word) {
        const int bank = static_cast<int>(word % 32);
        uint64_t* end = words[bank] + counts[bank];
        if (std::find(words[bank], end, word) != end) continue;
        *end = word;
        most = std::max<int>(most, ++counts[bank]);
      }
    }
    total += most;
    minimum += most > 0;
  }
  return total;
}

void AccessLog::clear() {
  for (auto& records : records_) records.clear();
}

void AccessLog::count(const Group& group, Counters& counters) {
  const int bytes = group.first.bytes;
  const auto shared = [&](SharedCount& counter) {
    int minimum = 0;
    counter.wavefronts += wavefronts(group.addresses, group.mask, bytes, minimum);
    counter.minimum += minimum;
    ++counter.instructions;
  };
  const auto global = [&](GlobalCount& counter) {
    if (bytes == 0) return;  // a cp.async that only fills with zeros
    ++counter.instructions;
    counter.requested_bytes += static_cast<uint64_t>(bytes) * std::popcount(group.mask);
    counter.sector_bytes += 32u * sectors(group.addresses, group.mask, bytes);
  };
  switch (group.first.kind) {
    case AccessKind::kSharedLoad:
      return shared(counters.shared_load);
    case AccessKind::kSharedStore:
      return shared(counters.shared_store);
    case AccessKind::kAsyncStore:
      return shared(counters.async_store);
    case AccessKind::kGlobalLoad:
      return global(counters.global_load);
    case AccessKind::kGlobalStore:
      return global(counters.global_store);
  }
}

// In the usual case, all active lanes did the same.
bool AccessLog::flush_uniform(Counters& counters) {
  uint32_t mask = 0;
  const std::vector<Record>* model = nullptr;
  for (int lane = 0; lane < 32; ++lane) {
    const auto& records = records_[lane];
    if (records.empty()) continue;
    mask |= 1u << lane;
    if (model == nullptr) {
      model = &records;
    } else if (!std::equal(
                   records.begin(), records.end(), model->begin(), model->end(),
                   [](const Record& a, const Record& b) { return a.same_instruction(b); })) {
      return false;
    }
  }
  if (model == nullptr) return true;
  Group group;
  group.mask = mask;
  for (size_t i = 0; i < model->size(); ++i) {
    group.first = (*model)[i];
    for (int lane = 0; lane < 32; ++lane) {
      if (mask >> lane & 1u) group.addresses[lane] = records_[lane][i].address;
    }
    count(group, counters);
  }
  return true;
}

void AccessLog::flush(Counters& counters) {
  if (!flush_uniform(counters)) {
    groups_.clear();
    sites_.clear();
    for (int lane = 0; lane < 32; ++lane) {
      for (const Record& record : records_[lane]) {
        Site& site = sites_[static_cast<uint64_t>(record.pc) << 16 | record.bytes << 8 |
                            static_cast<uint64_t>(record.kind)];
        if (site.lane != lane) site.lane = lane, site.next = 0;
        if (site.next == site.groups.size()) {
          site.groups.push_back(static_cast<uint32_t>(groups_.size()));
          groups_.push_back({record, 0, {}});
        }
        Group& group = groups_[site.groups[site.next++]];
        group.mask |= 1u << lane;
        group.addresses[lane] = record.address;
      }
    }
    for (const Group& group : groups_) count(group, counters);
  }
  clear();
}

}  // namespace retnet::simt
