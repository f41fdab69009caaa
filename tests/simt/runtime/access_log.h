// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "simt/report.h"
#include "simt/runtime/symbols.h"

namespace retnet::simt {

enum class AccessKind : uint8_t {
  kSharedLoad,
  kSharedStore,
  kAsyncStore,
  kGlobalLoad,
  kGlobalStore
};

// Wavefronts of one warp-wide access: 32 banks of 4 bytes serve one word each per wavefront; lanes
// that touch the same word share it. Accesses of 8 and 16 bytes go by half and quarter warps.
// addresses[lane] counts if `mask` has the bit of the lane. `minimum` becomes the number of groups of
// lanes that take part.
int wavefronts(const uint64_t (&addresses)[32], uint32_t mask, int bytes, int& minimum);

// The accesses of one warp since its lanes last met. Lanes run one after the other, so accesses are
// combined into warp-wide instructions afterwards. The k-th access of one lane by one instruction
// belongs to the k-th access of the others by it.
class AccessLog {
 public:
  void add(int lane, AccessKind kind, uint64_t address, int bytes, Pc pc) {
    records_[lane].push_back({address, pc, static_cast<uint8_t>(bytes), kind});
  }
  void flush(Counters& counters);
  void clear();

 private:
  struct Record {
    uint64_t address;
    Pc pc;
    uint8_t bytes;
    AccessKind kind;
    bool same_instruction(const Record& other) const {
      return pc == other.pc && kind == other.kind && bytes == other.bytes;
    }
  };
  struct Group {
    Record first;
    uint32_t mask;
    uint64_t addresses[32];
  };
  struct Site {
    std::vector<uint32_t> groups;
    int lane = -1;
    uint32_t next = 0;
  };

  bool flush_uniform(Counters& counters);
  static void count(const Group& group, Counters& counters);

  std::array<std::vector<Record>, 32> records_;
  std::vector<Group> groups_;
  std::unordered_map<uint64_t, Site> sites_;
};

}  // namespace retnet::simt
