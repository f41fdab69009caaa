// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "simt/runtime/findings.h"
#include "simt/runtime/lane.h"
#include "simt/simt.h"

namespace retnet::simt {

// An array of device memory between red zones, with what the checker knows of it.
class GlobalArray {
 public:
  GlobalArray(size_t bytes, Use use, std::string name, size_t offset);
  explicit GlobalArray(const Outside& memory);  // without red zones

  std::byte* data() const { return reinterpret_cast<std::byte*>(start_); }
  uintptr_t start() const { return start_; }
  bool contains(uintptr_t address, int bytes) const {
    return address >= start_ && address + bytes <= start_ + bytes_;
  }
  // Inside the array or its red zones. This memory belongs to the emulator and is harmless to touch.
  bool surrounds(uintptr_t address, int bytes) const {
    return address >= start_ - red_zone_ && address + bytes <= start_ + bytes_ + red_zone_;
  }
  const std::string& name() const { return name_; }
  bool writable() const { return use_ != Use::kInput; }

  void begin_launch();
  uint64_t read_sectors() const { return count_sectors(kRead); }
  uint64_t written_sectors() const { return count_sectors(kWritten); }

  void read(const Lane& lane, uint32_t block, uintptr_t address, int bytes, Pc pc,
            Findings& findings);
  void write(const Lane& lane, uint32_t block, uintptr_t address, int bytes, Pc pc,
             Findings& findings);
  std::string unwritten() const;  // how much of an output, or empty

 private:
  static constexpr size_t kRedZone = 4096;
  static constexpr uint8_t kRead = 1, kWritten = 2;
  static constexpr uint32_t kSeveral = UINT32_MAX;
  // One for each 2 bytes that may be written. Blocks count from 1. 0 means none in this launch.
  struct Granule {
    uint32_t writer_block = 0;
    uint32_t writer_clock = 0;
    uint32_t reader_block = 0;
    uint32_t reader_clock = 0;  // of the last reader since the write; earlier ones are forgotten
    Pc write_pc = 0;
    Pc read_pc = 0;
    uint16_t writer_thread = 0;
    uint16_t reader_thread = 0;
    bool initialised = false;  // by any launch, or by the host
  };

  void mark(uintptr_t address, int bytes, uint8_t flag);
  uint64_t count_sectors(uint8_t flag) const;

  size_t red_zone_ = kRedZone;
  size_t bytes_;
  Use use_;
  std::string name_;
  std::unique_ptr<std::byte, void (*)(void*)> memory_;
  uintptr_t start_;
  std::vector<Granule> granules_;
  std::vector<uint8_t> sectors_;
  std::mutex mutex_;  // blocks may run side by side
};

class GlobalMemory {
 public:
  GlobalArray& allocate(size_t bytes, Use use, const std::string& name, size_t offset);
  void find_outside(std::function<std::optional<Outside>(uintptr_t)> find) {
    outside_ = std::move(find);
  }
  // The array that holds or surrounds these bytes, or null.
  GlobalArray* find(uintptr_t address, int bytes);
  void report_unwritten(Findings& findings) const;
  const std::vector<std::unique_ptr<GlobalArray>>& arrays() const { return arrays_; }

 private:
  GlobalArray& add(std::unique_ptr<GlobalArray> array);

  std::vector<std::unique_ptr<GlobalArray>> arrays_;  // ascending by address
  std::function<std::optional<Outside>(uintptr_t)> outside_;
};

}  // namespace retnet::simt
