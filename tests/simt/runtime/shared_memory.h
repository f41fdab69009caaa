// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "simt/runtime/findings.h"
#include "simt/runtime/lane.h"

namespace retnet::simt {

// The shared memory of a block. For each granule of 2 bytes, it records the last writer and the
// readers since then. The smallest element of the kernels has 2 bytes, and larger granules would
// give false races on bf16.
//
// Addresses are offsets. Arrays are apart from one another and from offset 0, so that an index past
// the end of one is detected.
class SharedMemory {
 public:
  SharedMemory(size_t dynamic_bytes, int threads, Findings& findings);

  // Makes it uninitialised for the next block, with NaN in every format.
  void reset();

  void* dynamic() { return bytes_.get() + kDynamicStart; }
  void* static_array(const void* key, size_t bytes, size_t alignment);
  size_t static_bytes() const { return static_bytes_; }

  bool contains(uintptr_t address) const {
    return address - reinterpret_cast<uintptr_t>(bytes_.get()) < capacity_;
  }
  uint32_t offset(uintptr_t address) const {
    return static_cast<uint32_t>(address - reinterpret_cast<uintptr_t>(bytes_.get()));
  }
  std::byte* at(uint32_t offset) { return bytes_.get() + offset; }

  // Returns whether an access is inside one array. If it is not, that is reported.
  bool check_bounds(const Lane& lane, uint64_t offset, int bytes, Pc pc, const char* what);
  // Checks and records an access inside bounds. If a whole warp makes it, `lane` reads for all lanes,
  // so that even its own write must have been published.
  void read(const Lane& lane, uint32_t offset, int bytes, Pc pc, bool whole_warp = false);
  void write(const Lane& lane, uint32_t offset, int bytes, Pc pc) {
    write_as(lane, offset, bytes, pc, State::kValid);
  }
  // From the issue of a cp.async until its thread has waited, the destination is NaN and must not be
  // touched.
  void begin_copy(const Lane& lane, const AsyncCopy& copy);
  void end_copy(const Lane& lane, const AsyncCopy& copy);

 private:
  static constexpr size_t kDynamicStart = 1024;  // also the alignment of the whole
  static constexpr size_t kGap = 128;
  static constexpr size_t kStaticLimit = 48 << 10;
  static constexpr int kSlots = 8;
  static constexpr uint8_t kOverflow = 255;

  enum class State : uint8_t { kUninitialised, kValid, kInFlight };
  struct Granule {
    uint32_t write_clock = 0;  // 0: not written
    Pc write_pc = 0;
    Pc read_pc = 0;
    uint16_t write_thread = 0;
    State state = State::kUninitialised;
    uint8_t readers = 0;  // slots in use, or kOverflow: clock[0] is an index into overflow_
  };
  // Reads since the last write. Lanes of one warp at the same clock share a slot.
  struct Readers {
    uint32_t mask[kSlots];
    uint32_t clock[kSlots];
    uint8_t warp[kSlots];
  };
  struct Array {
    const void* key;
    size_t start;
    size_t bytes;
  };

  void write_as(const Lane& lane, uint32_t offset, int bytes, Pc pc, State state);
  void add_reader(const Lane& lane, Granule& granule, Readers& readers, Pc pc);
  void drop_known_readers(const Lane& lane, Granule& granule, Readers& readers);
  int unknown_reader(const Lane& lane, const Granule& granule, const Readers& readers) const;
  void clear(const Array& array);

  Findings& findings_;
  int threads_;
  size_t capacity_;
  size_t static_bytes_ = 0;
  std::vector<Array> arrays_;  // the dynamic one first
  std::unique_ptr<std::byte, void (*)(void*)> bytes_;
  std::unique_ptr<Granule[]> granules_;
  std::unique_ptr<Readers[]> readers_;           // meaningful where a granule has some
  std::vector<std::vector<uint32_t>> overflow_;  // latest read of each thread
};

Place place_of(const Lane& lane);

}  // namespace retnet::simt
