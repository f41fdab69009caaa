// SPDX-License-Identifier: Apache-2.0
//
// This machine has two CUDA devices. The emulator stands for one of them, which owns the tensors of the
// CPU. Everything that is asynchronous on a GPU happens at once. Clocks find what could go wrong in the
// order of a GPU: each stream counts its work and knows how much of the work of each other stream comes
// before its own.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "simt/runtime_library.h"

namespace retnet::on_simt {

class Graph;

constexpr int kDevices = 2;
constexpr int kTensorDevice = 1;  // the device that is current at first is the other one
constexpr int kStreams = 9;       // of each device: the default stream, and a pool

/// How much work of each stream of a device comes before something.
using Clocks = std::vector<uint64_t>;

struct Stream {
  int device;
  int id;
  uint64_t work = 0;               // counts
  Clocks seen = Clocks(kStreams);  // of the streams of the same device; its own: work
  std::shared_ptr<Graph> graph;    // that is being captured, or null

  uint64_t next() { return seen[id] = ++work; }
};

/// Where a failure is injected.
enum class Call { kSetDevice, kGetAttribute, kLaunch, kCaptureBegin, kCaptureEnd, kReplay, kCount };

struct Limits {
  int capability = 90;
  int multiprocessors = 132;
  int shared_bytes = 227 << 10;
  int code_architecture = 90;
};

class Machine final : public simt::RuntimeLibrary {
 public:
  static Machine& get();

  // The runtime library.
  cudaError_t launch(const simt::LaunchShape& shape, void (*trampoline)(const void*),
                     const void* arguments, size_t argument_bytes) override;
  cudaError_t set_dynamic_shared(const void* kernel, int bytes) override;
  cudaError_t get_code_architecture(int* architecture, const void* kernel) override;
  cudaError_t get_device(int* device) override;
  cudaError_t get_attribute(int* value, cudaDeviceAttr attribute, int device) override;
  cudaError_t set_device(int device);

  // Streams of the calling thread, by device.
  Stream& current(int device);
  void set_current(Stream& stream);
  Stream& stream(int device, int id) { return *streams_[device][id]; }
  Stream& from_pool(int device);
  static int device_of(int index,
                       bool is_cuda);  // of a torch device; -1 without a GPU's type: the tensors'

  /// Runs a launch whose stream has been checked.
  void run(const simt::LaunchShape& shape, void (*trampoline)(const void*), const void* arguments,
           size_t argument_bytes);

  /// The call fails once with the error, after `after` calls that do not.
  void fail(Call call, cudaError_t error, int after);
  /// The injected error of this call, or cudaSuccess.
  cudaError_t injected(Call call);

  /// Notes a fault of the code under test.
  void find(const std::string& message);
  std::vector<std::string> take_findings();

  Limits limits;
  uint64_t launches = 0;
  int64_t last_cluster = 0;  ///< blocks in each cluster of the last launch

 private:
  Machine();

  std::vector<std::unique_ptr<Stream>> streams_[kDevices];
  int next_from_pool_ = 0;
  simt::DynamicShared dynamic_shared_;
  struct Injection {
    cudaError_t error = cudaSuccess;
    int after = 0;
  };
  Injection injections_[static_cast<int>(Call::kCount)];
  std::mutex mutex_;
  std::vector<std::string> findings_;
};

}  // namespace retnet::on_simt
