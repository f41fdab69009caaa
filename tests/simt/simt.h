// SPDX-License-Identifier: Apache-2.0
//
// Runs the source of CUDA kernels on the CPU under a checker. Tests call this interface. See README.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "simt/report.h"

namespace retnet::simt {

// The order of blocks, warps and lanes. A warp runs as far as it can before the next one.
enum class Order { kAscending, kDescending, kRandom };

// Device memory that is not the Simulator's: `name` stands for it in findings.
struct Outside {
  void* start;
  size_t bytes;
  std::string name;
};

struct Options {
  Order order = Order::kAscending;
  uint64_t seed = 1;   // of kRandom
  int os_threads = 1;  // that run blocks side by side
  size_t stack_bytes = 64 << 10;
  size_t shared_limit = 227 << 10;  // bytes a block may have (sm_90; sm_80 163, sm_86 99 KB)
  // Finds what holds an address, asked once for each such array; then os_threads is 1. Kernels may write
  // it, and nothing is known of what was written before.
  std::function<std::optional<Outside>(uintptr_t)> outside;
};

enum class Use {
  kInput,      // read only
  kOutput,     // starts as NaN, must be written in full
  kInOut,      // starts as given, may be written
  kWorkspace,  // starts as NaN, must be written before it is read
};

// Device memory that the last launch reached.
struct Touched {
  uintptr_t start;
  bool read;
  bool written;
};

struct Implementation;

// The emulated device. It owns its memory, and the launches of this thread run on it while it lives.
class Simulator {
 public:
  explicit Simulator(const Options& options = {});
  ~Simulator();
  Simulator(const Simulator&) = delete;
  Simulator& operator=(const Simulator&) = delete;

  // Device memory between red zones, freed with the Simulator. It is aligned to 256 bytes plus
  // `offset`.
  void* allocate(size_t bytes, Use use, const std::string& name, size_t offset = 0);

  template <class T>
  T* input(std::span<const T> values, const std::string& name, size_t offset = 0) {
    return copy(values, Use::kInput, name, offset);
  }
  template <class T>
  T* in_out(std::span<const T> values, const std::string& name, size_t offset = 0) {
    return copy(values, Use::kInOut, name, offset);
  }
  template <class T>
  T* output(size_t count, const std::string& name, size_t offset = 0) {
    return static_cast<T*>(allocate(count * sizeof(T), Use::kOutput, name, offset));
  }
  template <class T>
  T* workspace(size_t count, const std::string& name, size_t offset = 0) {
    return static_cast<T*>(allocate(count * sizeof(T), Use::kWorkspace, name, offset));
  }

  // The report since construction. It is complete once finish() has looked for unwritten outputs.
  const Report& report() const;
  const Report& finish();
  std::vector<Touched> touched() const;

 private:
  template <class T>
  T* copy(std::span<const T> values, Use use, const std::string& name, size_t offset) {
    void* ptr = allocate(values.size_bytes(), use, name, offset);
    fill(ptr, values.data(), values.size_bytes());
    return static_cast<T*>(ptr);
  }
  static void fill(void* dst, const void* src, size_t bytes);

  std::unique_ptr<Implementation> implementation_;
};

}  // namespace retnet::simt
