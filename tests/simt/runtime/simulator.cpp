// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <thread>

#include "simt/runtime/block.h"
#include "simt/runtime/simulator_library.h"
#include "simt/simt.h"

namespace retnet::simt {

struct Implementation {
  Options options;
  GlobalMemory memory;
  Findings findings;
  Report report;
  DynamicShared dynamic_shared;
};

namespace {

thread_local Implementation* simulator_in_use = nullptr;

std::vector<uint32_t> cluster_order(const Options& options, uint32_t clusters) {
  std::vector<uint32_t> order(clusters);
  std::iota(order.begin(), order.end(), 0);
  if (options.order == Order::kDescending) std::reverse(order.begin(), order.end());
  if (options.order == Order::kRandom) {
    std::mt19937_64 random(options.seed);
    std::shuffle(order.begin(), order.end(), random);
  }
  return order;
}

// Returns whether every CUDA device can launch this shape.
bool launchable(const LaunchShape& shape) {
  const auto& [grid, block, shared, cluster, kernel, stream] = shape;
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  return grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= INT32_MAX && grid.y < 65536 &&
         grid.z < 65536 && threads > 0 && threads <= 1024 && block.z <= 64 && cluster > 0 &&
         cluster <= 8 && grid.x % cluster == 0;
}

}  // namespace

Simulator::Simulator(const Options& options) : implementation_(std::make_unique<Implementation>()) {
  if (simulator_in_use != nullptr) {
    std::fprintf(stderr, "simt: a thread has one Simulator at a time\n");
    std::abort();
  }
  implementation_->options = options;
  implementation_->memory.find_outside(options.outside);
  simulator_in_use = implementation_.get();
}

Simulator::~Simulator() { simulator_in_use = nullptr; }

void* Simulator::allocate(size_t bytes, Use use, const std::string& name, size_t offset) {
  return implementation_->memory.allocate(bytes, use, name, offset).data();
}

void Simulator::fill(void* dst, const void* src, size_t bytes) {
  if (bytes > 0) std::memcpy(dst, src, bytes);
}

const Report& Simulator::report() const {
  implementation_->report.findings = implementation_->findings.collect();
  return implementation_->report;
}

const Report& Simulator::finish() {
  implementation_->memory.report_unwritten(implementation_->findings);
  return report();
}

std::vector<Touched> Simulator::touched() const {
  std::vector<Touched> all;
  for (const auto& array : implementation_->memory.arrays()) {
    all.push_back({array->start(), array->read_sectors() > 0, array->written_sectors() > 0});
  }
  return all;
}

namespace {

Implementation& simulator_of_this_thread() {
  if (simulator_in_use == nullptr) {
    std::fprintf(stderr, "simt: a kernel is launched where no Simulator lives\n");
    std::abort();
  }
  return *simulator_in_use;
}

class SimulatorLibrary final : public RuntimeLibrary {
 public:
  cudaError_t launch(const LaunchShape& shape, void (*trampoline)(const void*),
                     const void* arguments, size_t argument_bytes) override {
    if (!simulator_of_this_thread().dynamic_shared.allows(shape)) return cudaErrorInvalidValue;
    return simulate(shape, trampoline, arguments, argument_bytes);
  }
  cudaError_t set_dynamic_shared(const void* kernel, int bytes) override {
    Implementation& simulator = simulator_of_this_thread();
    return simulator.dynamic_shared.allow(kernel, bytes, simulator.options.shared_limit);
  }
  cudaError_t get_code_architecture(int* architecture, const void*) override {
    *architecture = 90;
    return cudaSuccess;
  }
  cudaError_t get_device(int* device) override {
    *device = 0;
    return cudaSuccess;
  }
  cudaError_t get_attribute(int*, cudaDeviceAttr, int) override { return cudaErrorNotSupported; }
};

}  // namespace

RuntimeLibrary& simulator_library() {
  static SimulatorLibrary library;
  return library;
}

cudaError_t simulate(const LaunchShape& shape, void (*trampoline)(const void*),
                     const void* arguments, size_t argument_bytes) {
  Implementation& simulator = simulator_of_this_thread();
  const Options& options = simulator.options;
  if (!launchable(shape)) {
    simulator.findings.add(FindingKind::kBadLaunch, Place{}, 0, 0, [&] {
      return format("grid %u x %u x %u of %u x %u x %u threads in clusters of %u", shape.grid.x,
                    shape.grid.y, shape.grid.z, shape.block.x, shape.block.y, shape.block.z,
                    shape.cluster);
    });
    return cudaErrorInvalidConfiguration;
  }
  if (shape.dynamic_shared > options.shared_limit) return cudaErrorInvalidValue;

  const LaunchContext context{shape,   trampoline,       arguments,         argument_bytes,
                              options, simulator.memory, simulator.findings};
  for (const auto& array : simulator.memory.arrays()) array->begin_launch();
  LaunchCounters counters;
  counters.blocks.resize(context.blocks());
  counters.dynamic_shared_bytes = shape.dynamic_shared;

  const std::vector<uint32_t> order = cluster_order(options, context.blocks() / shape.cluster);
  std::atomic<size_t> next = 0;
  std::atomic<size_t> static_bytes = 0;
  const auto work = [&] {
    Cluster cluster(context);
    for (size_t i = next++; i < order.size(); i = next++) {
      cluster.run(order[i] * shape.cluster, counters.blocks);
    }
    if (cluster.static_bytes() > static_bytes) static_bytes = cluster.static_bytes();
  };
  std::vector<std::thread> helpers;
  for (int i = 1; i < options.os_threads; ++i) helpers.emplace_back(work);
  work();
  for (std::thread& helper : helpers) helper.join();

  counters.static_shared_bytes = static_bytes;
  if (counters.static_shared_bytes + shape.dynamic_shared > options.shared_limit) {
    simulator.findings.add(FindingKind::kSharedTooLarge, Place{}, 0, 0, [&] {
      return format("%zu bytes static and %zu dynamic, of %zu", counters.static_shared_bytes,
                    shape.dynamic_shared, options.shared_limit);
    });
  }
  for (const Counters& block : counters.blocks) counters.total += block;
  for (const auto& array : simulator.memory.arrays()) {
    counters.unique_read_bytes += 32 * array->read_sectors();
    counters.unique_written_bytes += 32 * array->written_sectors();
  }
  simulator.report.launches.push_back(std::move(counters));
  return cudaSuccess;
}

}  // namespace retnet::simt
