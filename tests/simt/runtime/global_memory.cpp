// SPDX-License-Identifier: Apache-2.0
#include "simt/runtime/global_memory.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "simt/runtime/shared_memory.h"

namespace retnet::simt {

GlobalArray::GlobalArray(size_t bytes, Use use, std::string name, size_t offset)
    : bytes_(bytes), use_(use), name_(std::move(name)), memory_(nullptr, std::free) {
  const size_t total = (bytes + offset + 2 * kRedZone + 255) / 256 * 256;
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(256, total)));
  if (memory_ == nullptr) std::abort();
  std::memset(memory_.get(), 0xff, total);  // NaN in every format
  start_ = reinterpret_cast<uintptr_t>(memory_.get()) + kRedZone + offset;
  sectors_.resize(bytes / 32 + 2);
  if (use != Use::kInput) granules_.resize((bytes + 1) / 2);
  if (use == Use::kInOut) {
    for (Granule& granule : granules_) granule.initialised = true;
  }
}

GlobalArray::GlobalArray(const Outside& memory)
    : red_zone_(0),
      bytes_(memory.bytes),
      use_(Use::kInOut),
      name_(memory.name),
      memory_(nullptr, std::free),
      start_(reinterpret_cast<uintptr_t>(memory.start)) {
  sectors_.resize(bytes_ / 32 + 2);
  granules_.resize((bytes_ + 1) / 2);
  for (Granule& granule : granules_) granule.initialised = true;
}

void GlobalArray::begin_launch() {
  std::fill(sectors_.begin(), sectors_.end(), 0);
  for (Granule& granule : granules_) {
    const bool initialised = granule.initialised;
    granule = {};
    granule.initialised = initialised;
  }
}

void GlobalArray::mark(uintptr_t address, int bytes, uint8_t flag) {
  const uintptr_t base = start_ / 32;
  for (uintptr_t s = address / 32; s <= (address + bytes - 1) / 32; ++s) {
    __atomic_fetch_or(&sectors_[s - base], flag, __ATOMIC_RELAXED);
  }
}

uint64_t GlobalArray::count_sectors(uint8_t flag) const {
  return std::count_if(sectors_.begin(), sectors_.end(), [&](uint8_t s) { return s & flag; });
}

void GlobalArray::read(const Lane& lane, uint32_t block, uintptr_t address, int bytes, Pc pc,
                       Findings& findings) {
  mark(address, bytes, kRead);
  if (use_ == Use::kInput) return;
  const std::lock_guard lock(mutex_);
  const size_t first = (address - start_) / 2;
  const size_t end = (address - start_ + bytes + 1) / 2;
  for (size_t g = first; g < end; ++g) {
    Granule& granule = granules_[g];
    const auto describe = [&] { return format("read of %s + %zu bytes", name_.c_str(), g * 2); };
    if (!granule.initialised) {
      findings.add(FindingKind::kGlobalUninitialised, place_of(lane), pc, 0, describe);
    } else if (granule.writer_block != 0 && granule.writer_block != block + 1) {
      findings.add(FindingKind::kGlobalBlockConflict, place_of(lane), pc, granule.write_pc, [&] {
        return describe() + format(", written by block %u", granule.writer_block - 1);
      });
    } else if (granule.writer_block != 0 &&
               !lane.knows(granule.writer_thread, granule.writer_clock)) {
      findings.add(FindingKind::kGlobalRace, place_of(lane), pc, granule.write_pc, [&] {
        return describe() + format(", written by thread %d", granule.writer_thread);
      });
    }
    const bool first_reader = granule.reader_block == 0 || granule.reader_block == block + 1;
    granule.reader_block = first_reader ? block + 1 : kSeveral;
    granule.reader_thread = static_cast<uint16_t>(lane.thread);
    granule.reader_clock = lane.clock;
    granule.read_pc = pc;
  }
}

void GlobalArray::write(const Lane& lane, uint32_t block, uintptr_t address, int bytes, Pc pc,
                        Findings& findings) {
  if (use_ == Use::kInput) {
    findings.add(FindingKind::kGlobalReadOnly, place_of(lane), pc, 0, [&] {
      return format("write to %s + %zu bytes", name_.c_str(), address - start_);
    });
    return;
  }
  mark(address, bytes, kWritten);
  const std::lock_guard lock(mutex_);
  const size_t first = (address - start_) / 2;
  const size_t end = (address - start_ + bytes + 1) / 2;
  for (size_t g = first; g < end; ++g) {
    Granule& granule = granules_[g];
    const auto describe = [&] { return format("write to %s + %zu bytes", name_.c_str(), g * 2); };
    if (granule.writer_block != 0 && granule.writer_block != block + 1) {
      findings.add(FindingKind::kGlobalBlockConflict, place_of(lane), pc, granule.write_pc, [&] {
        return describe() + format(", written by block %u", granule.writer_block - 1);
      });
    } else if (granule.reader_block != 0 && granule.reader_block != block + 1) {
      findings.add(FindingKind::kGlobalBlockConflict, place_of(lane), pc, granule.read_pc,
                   [&] { return describe() + ", read by another block"; });
    } else if (granule.writer_block != 0 &&
               !lane.knows(granule.writer_thread, granule.writer_clock)) {
      findings.add(FindingKind::kGlobalRace, place_of(lane), pc, granule.write_pc, [&] {
        return describe() + format(", written by thread %d", granule.writer_thread);
      });
    } else if (granule.reader_clock != 0 &&
               !lane.knows(granule.reader_thread, granule.reader_clock)) {
      findings.add(FindingKind::kGlobalRace, place_of(lane), pc, granule.read_pc, [&] {
        return describe() + format(", read by thread %d", granule.reader_thread);
      });
    }
    granule.reader_clock = 0;
    granule.writer_block = block + 1;
    granule.writer_clock = lane.clock;
    granule.writer_thread = static_cast<uint16_t>(lane.thread);
    granule.write_pc = pc;
    granule.initialised = true;
  }
}

std::string GlobalArray::unwritten() const {
  const auto unwritten = [](const Granule& granule) { return !granule.initialised; };
  const auto first = std::find_if(granules_.begin(), granules_.end(), unwritten);
  if (use_ != Use::kOutput || first == granules_.end()) return "";
  return format("%zu of %zu bytes of %s, the first at byte %zu",
                2 * static_cast<size_t>(std::count_if(first, granules_.end(), unwritten)), bytes_,
                name_.c_str(), 2 * static_cast<size_t>(first - granules_.begin()));
}

void GlobalMemory::report_unwritten(Findings& findings) const {
  std::string all;
  for (const auto& array : arrays_) {
    const std::string one = array->unwritten();
    all += all.empty() || one.empty() ? one : "; " + one;
  }
  if (all.empty()) return;
  findings.add(FindingKind::kUnwrittenOutput, Place{}, 0, 0, [&] { return all; });
}

GlobalArray& GlobalMemory::allocate(size_t bytes, Use use, const std::string& name, size_t offset) {
  return add(std::make_unique<GlobalArray>(bytes, use, name, offset));
}

GlobalArray& GlobalMemory::add(std::unique_ptr<GlobalArray> array) {
  const auto position =
      std::upper_bound(arrays_.begin(), arrays_.end(), array,
                       [](const auto& a, const auto& b) { return a->start() < b->start(); });
  return **arrays_.insert(position, std::move(array));
}

GlobalArray* GlobalMemory::find(uintptr_t address, int bytes) {
  // The last array that starts before the address, unless the address is in the red zone of the next.
  auto next = std::upper_bound(arrays_.begin(), arrays_.end(), address,
                               [](uintptr_t a, const auto& array) { return a < array->start(); });
  if (next != arrays_.begin() && (*(next - 1))->surrounds(address, bytes)) return (next - 1)->get();
  if (next != arrays_.end() && (*next)->surrounds(address, bytes)) return next->get();
  if (outside_ == nullptr) return nullptr;
  const auto found = outside_(address);
  if (!found ||
      (next != arrays_.begin() && (*(next - 1))->data() == static_cast<std::byte*>(found->start))) {
    return nullptr;  // the access crosses the end of an array that is known
  }
  GlobalArray& array = add(std::make_unique<GlobalArray>(*found));
  return array.surrounds(address, bytes) ? &array : nullptr;
}

}  // namespace retnet::simt
