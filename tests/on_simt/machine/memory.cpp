// SPDX-License-Identifier: Apache-2.0
#include "machine/memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "machine/graph.h"

namespace retnet::on_simt {
namespace {

constexpr size_t kAlignment = 512;  // as torch's allocator of CUDA memory has it

struct Block {
  size_t bytes;
  int owner;           // stream
  uint64_t allocated;  // by its clock
  std::weak_ptr<Pool> pool;
  bool pooled;
  Clocks read = Clocks(kStreams), written = Clocks(kStreams);  // last, by each stream
};

struct Memory {
  std::mutex mutex;
  std::map<uintptr_t, Block> blocks;
};

Memory& memory() {
  static Memory& all = *new Memory;
  return all;
}

std::string of_stream(int id) {
  return id == 0 ? "the default stream" : "stream " + std::to_string(id);
}

void release(void* start) {
  std::shared_ptr<Pool> pool;
  std::string finding;
  {
    const std::lock_guard lock(memory().mutex);
    const auto found = memory().blocks.find(reinterpret_cast<uintptr_t>(start));
    const Block& block = found->second;
    pool = block.pool.lock();
    if (pool == nullptr) {
      const Stream& owner = Machine::get().stream(kTensorDevice, block.owner);
      for (int id = 0; id < kStreams && !block.pooled; ++id) {
        if (owner.seen[id] >= std::max(block.read[id], block.written[id])) continue;
        finding = "memory of " + of_stream(block.owner) + " is freed, which does not wait for " +
                  of_stream(id) + ", where a kernel uses it";
      }
      std::memset(start, 0xff, block.bytes);
      memory().blocks.erase(found);
      std::free(start);
    }
  }
  if (pool != nullptr) pool->freed.push_back(start);
  if (!finding.empty()) Machine::get().find(finding);
}

class Allocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::Device(c10::DeviceType::CPU)};
    const size_t total = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    void* const start = std::aligned_alloc(kAlignment, total);
    if (start == nullptr) throw std::bad_alloc();
    Stream& stream = Machine::get().current(kTensorDevice);
    const std::shared_ptr<Graph> graph = stream.graph;
    const std::lock_guard lock(memory().mutex);
    Block block{bytes, stream.id, stream.next(), {}, graph != nullptr};
    if (graph != nullptr) block.pool = graph->pool;
    memory().blocks.emplace(reinterpret_cast<uintptr_t>(start), std::move(block));
    return {start, start, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* dst, const void* src, size_t bytes) const override {
    std::memcpy(dst, src, bytes);
  }
};

}  // namespace

Pool::~Pool() {
  const std::lock_guard lock(memory().mutex);
  for (void* const start : freed) {
    memory().blocks.erase(reinterpret_cast<uintptr_t>(start));
    std::free(start);
  }
}

void install_allocator() {
  static Allocator& allocator = *new Allocator;
  c10::SetCPUAllocator(&allocator, /*priority=*/UINT8_MAX);
}

std::optional<simt::Outside> find_block(uintptr_t address) {
  const std::lock_guard lock(memory().mutex);
  const auto next = memory().blocks.upper_bound(address);
  if (next == memory().blocks.begin()) return std::nullopt;
  const auto& [start, block] = *std::prev(next);
  if (address >= start + block.bytes) return std::nullopt;
  return simt::Outside{reinterpret_cast<void*>(start), block.bytes,
                       "a tensor of " + std::to_string(block.bytes) + " bytes"};
}

void note_access(const simt::Touched& touched, Stream& stream) {
  std::vector<std::string> findings;
  const auto name = of_stream(stream.id);
  {
    const std::lock_guard lock(memory().mutex);
    const auto found = memory().blocks.find(touched.start);
    if (found == memory().blocks.end()) return;
    Block& block = found->second;
    if (!block.pooled && stream.seen[block.owner] < block.allocated) {
      findings.push_back("a kernel on " + name + " uses memory of " + of_stream(block.owner) +
                         ", which it does not wait for");
    }
    for (int id = 0; id < kStreams; ++id) {
      if (stream.seen[id] < block.written[id] ||
          (touched.written && stream.seen[id] < block.read[id])) {
        findings.push_back("a kernel on " + name + " races with a kernel on " + of_stream(id));
      }
    }
    if (touched.read) block.read[stream.id] = stream.work;
    if (touched.written) block.written[stream.id] = stream.work;
  }
  for (const std::string& finding : findings) Machine::get().find(finding);
}

}  // namespace retnet::on_simt
