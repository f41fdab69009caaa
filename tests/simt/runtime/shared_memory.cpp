// SPDX-License-Identifier: Apache-2.0
#include "simt/runtime/shared_memory.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace retnet::simt {
namespace {

size_t round_up(size_t value, size_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

SharedMemory::SharedMemory(size_t dynamic_bytes, int threads, Findings& findings)
    : findings_(findings),
      threads_(threads),
      // Room for the largest static arrays that CUDA allows, each with a gap.
      capacity_(round_up(kDynamicStart + dynamic_bytes + 2 * kStaticLimit, kDynamicStart)),
      arrays_{{nullptr, kDynamicStart, dynamic_bytes}},
      bytes_(static_cast<std::byte*>(std::aligned_alloc(kDynamicStart, capacity_)), std::free),
      granules_(new Granule[capacity_ / 2]),
      readers_(new Readers[capacity_ / 2]) {
  clear(arrays_[0]);
}

void SharedMemory::clear(const Array& array) {
  std::memset(bytes_.get() + array.start, 0xff, array.bytes);
  for (size_t g = array.start / 2; g < (array.start + array.bytes + 1) / 2; ++g) {
    granules_[g] = Granule{};
  }
}

void SharedMemory::reset() {
  overflow_.clear();
  for (const Array& array : arrays_) clear(array);
}

void* SharedMemory::static_array(const void* key, size_t bytes, size_t alignment) {
  for (const Array& array : arrays_) {
    if (array.key == key) return bytes_.get() + array.start;
  }
  const Array& last = arrays_.back();
  const size_t start = round_up(last.start + last.bytes + kGap, alignment);
  if (static_bytes_ + bytes > kStaticLimit || start + bytes > capacity_) {
    std::fprintf(stderr, "simt: static shared arrays of more than 48 KB\n");
    std::abort();
  }
  static_bytes_ = round_up(static_bytes_, alignment) + bytes;
  arrays_.push_back({key, start, bytes});
  clear(arrays_.back());
  return bytes_.get() + start;
}

bool SharedMemory::check_bounds(const Lane& lane, uint64_t offset, int bytes, Pc pc,
                                const char* what) {
  for (const Array& array : arrays_) {
    if (offset >= array.start && offset + bytes <= array.start + array.bytes) return true;
  }
  findings_.add(FindingKind::kSharedOutOfBounds, place_of(lane), pc, 0, [&] {
    std::string arrays;
    for (const Array& array : arrays_) {
      if (array.bytes == 0) continue;
      arrays += format(" [%zu, %zu)", array.start, array.start + array.bytes);
    }
    return format("%s of %d bytes at shared address %lld; arrays:%s", what, bytes,
                  static_cast<long long>(offset), arrays.c_str());
  });
  return false;
}

// Forgets readers that `lane` knows of, because what comes after `lane` also comes after them.
void SharedMemory::drop_known_readers(const Lane& lane, Granule& granule, Readers& readers) {
  int kept = 0;
  for (int i = 0; i < granule.readers; ++i) {
    uint32_t unknown = 0;
    for (uint32_t rest = readers.mask[i]; rest != 0; rest &= rest - 1) {
      const int reader = std::countr_zero(rest);
      if (!lane.knows(readers.warp[i] * 32 + reader, readers.clock[i])) unknown |= 1u << reader;
    }
    if (unknown == 0) continue;
    readers.mask[kept] = unknown;
    readers.clock[kept] = readers.clock[i];
    readers.warp[kept] = readers.warp[i];
    ++kept;
  }
  granule.readers = static_cast<uint8_t>(kept);
}

void SharedMemory::add_reader(const Lane& lane, Granule& granule, Readers& readers, Pc pc) {
  granule.read_pc = pc;
  if (granule.readers == kOverflow) {
    overflow_[readers.clock[0]][lane.thread] = lane.clock;
    return;
  }
  for (int i = 0; i < granule.readers; ++i) {
    if (readers.warp[i] == lane.warp && readers.clock[i] == lane.clock) {
      readers.mask[i] |= 1u << lane.lane;
      return;
    }
  }
  if (granule.readers == kSlots) drop_known_readers(lane, granule, readers);
  if (granule.readers == kSlots) {
    std::vector<uint32_t> latest(threads_);
    for (int i = 0; i < kSlots; ++i) {
      for (uint32_t rest = readers.mask[i]; rest != 0; rest &= rest - 1) {
        uint32_t& clock = latest[readers.warp[i] * 32 + std::countr_zero(rest)];
        clock = std::max(clock, readers.clock[i]);
      }
    }
    latest[lane.thread] = lane.clock;
    readers.clock[0] = static_cast<uint32_t>(overflow_.size());
    granule.readers = kOverflow;
    overflow_.push_back(std::move(latest));
    return;
  }
  const int slot = granule.readers++;
  readers.mask[slot] = 1u << lane.lane;
  readers.clock[slot] = lane.clock;
  readers.warp[slot] = static_cast<uint8_t>(lane.warp);
}

// Returns a thread that has read the granule and that `lane` does not know to be done, or -1.
int SharedMemory::unknown_reader(const Lane& lane, const Granule& granule,
                                 const Readers& readers) const {
  if (granule.readers == kOverflow) {
    const auto& latest = overflow_[readers.clock[0]];
    for (int t = 0; t < threads_; ++t) {
      if (latest[t] != 0 && !lane.knows(t, latest[t])) return t;
    }
    return -1;
  }
  for (int i = 0; i < granule.readers; ++i) {
    for (uint32_t rest = readers.mask[i]; rest != 0; rest &= rest - 1) {
      const int thread = readers.warp[i] * 32 + std::countr_zero(rest);
      if (!lane.knows(thread, readers.clock[i])) return thread;
    }
  }
  return -1;
}

void SharedMemory::read(const Lane& lane, uint32_t offset, int bytes, Pc pc, bool whole_warp) {
  for (uint32_t g = offset / 2; g < (offset + bytes + 1) / 2; ++g) {
    Granule& granule = granules_[g];
    if (granule.state != State::kValid) {
      const bool in_flight = granule.state == State::kInFlight;
      findings_.add(in_flight ? FindingKind::kAsyncInFlight : FindingKind::kSharedUninitialised,
                    place_of(lane), pc, in_flight ? granule.write_pc : 0, [&] {
                      return in_flight
                                 ? format("read at shared address %u, which thread %d copies to",
                                          g * 2, granule.write_thread)
                                 : format("read at shared address %u", g * 2);
                    });
    } else if (lane.seen[granule.write_thread] < granule.write_clock &&
               (whole_warp || granule.write_thread != lane.thread)) {
      findings_.add(FindingKind::kSharedReadAfterWrite, place_of(lane), pc, granule.write_pc, [&] {
        return format("at shared address %u, written by thread %d", g * 2, granule.write_thread);
      });
    }
    add_reader(lane, granule, readers_[g], pc);
  }
}

void SharedMemory::write_as(const Lane& lane, uint32_t offset, int bytes, Pc pc, State state) {
  for (uint32_t g = offset / 2; g < (offset + bytes + 1) / 2; ++g) {
    Granule& granule = granules_[g];
    if (granule.state == State::kInFlight) {
      findings_.add(FindingKind::kAsyncInFlight, place_of(lane), pc, granule.write_pc, [&] {
        return format("write at shared address %u, which thread %d copies to", g * 2,
                      granule.write_thread);
      });
    } else if (granule.write_clock != 0 && !lane.knows(granule.write_thread, granule.write_clock)) {
      findings_.add(FindingKind::kSharedWriteAfterWrite, place_of(lane), pc, granule.write_pc, [&] {
        return format("at shared address %u, written by thread %d", g * 2, granule.write_thread);
      });
    }
    if (const int reader = unknown_reader(lane, granule, readers_[g]); reader >= 0) {
      findings_.add(FindingKind::kSharedWriteAfterRead, place_of(lane), pc, granule.read_pc, [&] {
        return format("at shared address %u, read by thread %d", g * 2, reader);
      });
    }
    granule = Granule{lane.clock, pc, 0, static_cast<uint16_t>(lane.thread), state, 0};
  }
}

void SharedMemory::begin_copy(const Lane& lane, const AsyncCopy& copy) {
  write_as(lane, copy.dst, copy.bytes, copy.pc, State::kInFlight);
  std::memset(at(copy.dst), 0xff, copy.bytes);
}

void SharedMemory::end_copy(const Lane& lane, const AsyncCopy& copy) {
  std::memset(at(copy.dst), 0, copy.bytes);
  std::memcpy(at(copy.dst), copy.src, copy.src_bytes);
  for (uint32_t g = copy.dst / 2; g < (copy.dst + copy.bytes) / 2; ++g) {
    granules_[g].state = State::kValid;
    granules_[g].write_clock = lane.clock;  // visible to others from the next barrier on
    granules_[g].write_thread = static_cast<uint16_t>(lane.thread);
  }
}

}  // namespace retnet::simt
