// SPDX-License-Identifier: Apache-2.0
//
// The results of a run of emulated kernels: findings, each of which is a bug, and counts, which
// determine the speed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace retnet::simt {

enum class FindingKind {
  // Shared memory
  kSharedReadAfterWrite,  // no barrier between the write and this read
  kSharedWriteAfterRead,  // no barrier between a read and this write (a refill)
  kSharedWriteAfterWrite,
  kSharedUninitialised,
  kSharedOutOfBounds,
  kSharedTooLarge,      // static and dynamic together exceed Options::shared_limit
  kAsyncInFlight,       // touches what a cp.async has not been waited for to write
  kAsyncPendingAtExit,  // a thread ends with copies that it never waited for
  // Global memory
  kGlobalOutOfBounds,
  kGlobalReadOnly,       // write to an input
  kGlobalUninitialised,  // read of an output or workspace that nothing has written
  kGlobalBlockConflict,  // two blocks touch the same bytes and at least one writes
  kGlobalRace,           // two threads of a block do, with no barrier between
  kUnwrittenOutput,
  // Both
  kMisaligned,
  // Barriers and warp-wide instructions
  kUnmatchedBarrier,     // threads wait at a barrier that others never reach
  kDivergentBarrier,     // lanes of one warp at different barrier instructions
  kBadBarrier,           // id, count, or a count that differs from the other arrivals'
  kUnmatchedCollective,  // lanes wait for others at a shuffle, sync_warp, ldmatrix or mma
  kDivergentCollective,  // lanes of one warp at different instructions of the same kind
  kBadShuffle,           // from a lane that does not exist
  kClusterAbsent,        // store to a block that may not have started, may have ended, or is none
  // Language
  kArrayBounds,  // index past an array of known size: a register array
  kArithmetic,   // signed overflow, bad shift
  kBadLaunch,
};

const char* name(FindingKind kind);

// The first of all findings of one kind at one place. `count` is their number.
struct Finding {
  FindingKind kind;
  std::string where;  // file:line of the instruction, or empty
  std::string other;  // of the earlier access or barrier that it conflicts with, or empty
  std::string detail;
  uint32_t block = 0;
  int thread = -1;
  uint64_t count = 1;
};

std::string to_string(const Finding& finding);

// Warp-wide instructions on shared memory of one kind. `minimum` is what `wavefronts` would be
// without bank conflicts.
struct SharedCount {
  uint64_t instructions = 0;
  uint64_t wavefronts = 0;
  uint64_t minimum = 0;
};

// Warp-wide instructions on global memory in one direction. Sector bytes: 32 for each sector that
// an instruction touches, summed over instructions (what the L2 cache serves).
struct GlobalCount {
  uint64_t instructions = 0;
  uint64_t requested_bytes = 0;
  uint64_t sector_bytes = 0;
};

struct Counters {
  SharedCount shared_load;
  SharedCount shared_store;
  SharedCount matrix_load;  // ldmatrix
  SharedCount async_store;  // cp.async, its write to shared memory
  GlobalCount global_load;  // cp.async's included
  GlobalCount global_store;
  uint64_t mma = 0;
  uint64_t barriers = 0;  // completed, of all ids
  uint64_t shuffles = 0;

  Counters& operator+=(const Counters& other);
  uint64_t shared_wavefronts() const {
    return shared_load.wavefronts + shared_store.wavefronts + matrix_load.wavefronts +
           async_store.wavefronts;
  }
  // Wavefronts that bank conflicts add.
  uint64_t bank_conflicts() const {
    return shared_wavefronts() - shared_load.minimum - shared_store.minimum - matrix_load.minimum -
           async_store.minimum;
  }
};

struct LaunchCounters {
  Counters total;
  std::vector<Counters> blocks;  // in the order of their linear index
  // 32 bytes for each sector that the launch touches. Device memory moves at least these.
  uint64_t unique_read_bytes = 0;
  uint64_t unique_written_bytes = 0;
  size_t static_shared_bytes = 0;
  size_t dynamic_shared_bytes = 0;
};

struct Report {
  std::vector<Finding> findings;
  std::vector<LaunchCounters> launches;

  bool has(FindingKind kind) const;
  Counters total() const;
  std::string to_string() const;  // one finding a line
};

}  // namespace retnet::simt
