// SPDX-License-Identifier: Apache-2.0
#include "machine/machine.h"

#include <c10/util/Exception.h>

#include <utility>

#include "machine/graph.h"
#include "machine/memory.h"
#include "simt/simt.h"

namespace retnet::on_simt {
namespace {

thread_local int current_device = 0;
thread_local Stream* current_streams[kDevices] = {};

}  // namespace

Machine& Machine::get() {
  static Machine& machine = *new Machine;  // tensors outlive all that has a destructor
  return machine;
}

Machine::Machine() {
  for (int device = 0; device < kDevices; ++device) {
    for (int id = 0; id < kStreams; ++id) {
      auto stream = std::make_unique<Stream>();
      stream->device = device;
      stream->id = id;
      streams_[device].push_back(std::move(stream));
    }
  }
}

cudaError_t Machine::get_device(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t Machine::set_device(int device) {
  if (device < 0 || device >= kDevices) return cudaErrorInvalidDevice;
  current_device = device;
  return cudaSuccess;
}

cudaError_t Machine::get_attribute(int* value, cudaDeviceAttr attribute, int device) {
  if (const cudaError_t error = injected(Call::kGetAttribute); error != cudaSuccess) return error;
  // The index of a CPU's tensor is -1, that of a GPU's never.
  if (device < -1 || device >= kDevices) return cudaErrorInvalidDevice;
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = limits.capability / 10;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = limits.capability % 10;
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = limits.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = limits.shared_bytes;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

cudaError_t Machine::get_code_architecture(int* architecture, const void*) {
  *architecture = limits.code_architecture;
  return cudaSuccess;
}

cudaError_t Machine::set_dynamic_shared(const void* kernel, int bytes) {
  const std::lock_guard lock(mutex_);
  return dynamic_shared_.allow(kernel, bytes, limits.shared_bytes);
}

Stream& Machine::current(int device) {
  Stream* const stream = current_streams[device];
  return stream != nullptr ? *stream : *streams_[device][0];
}

void Machine::set_current(Stream& stream) { current_streams[stream.device] = &stream; }

Stream& Machine::from_pool(int device) {
  const std::lock_guard lock(mutex_);
  next_from_pool_ = next_from_pool_ % (kStreams - 1) + 1;
  return *streams_[device][next_from_pool_];
}

int Machine::device_of(int index, bool is_cuda) {
  if (!is_cuda) return kTensorDevice;
  return index < 0 ? current_device : index;
}

cudaError_t Machine::launch(const simt::LaunchShape& shape, void (*trampoline)(const void*),
                            const void* arguments, size_t argument_bytes) {
  if (const cudaError_t error = injected(Call::kLaunch); error != cudaSuccess) return error;
  const auto refuse = [&](const char* message) {
    find(message);
    TORCH_CHECK(false, message);
  };
  if (shape.stream == nullptr) refuse("a kernel is launched on the legacy default stream");
  const auto& stream = *reinterpret_cast<const Stream*>(shape.stream);
  if (current_device != kTensorDevice) {
    refuse("a kernel is launched while the tensors' device is not current");
  }
  if (stream.device != current_device) return cudaErrorInvalidResourceHandle;
  if (&stream != &current(current_device)) {
    refuse("a kernel is launched on a stream that is not current");
  }
  {
    const std::lock_guard lock(mutex_);
    if (!dynamic_shared_.allows(shape)) return cudaErrorInvalidValue;
  }
  if (shape.cluster > 1 && limits.code_architecture < 90) return cudaErrorInvalidConfiguration;
  if (stream.graph == nullptr) {
    run(shape, trampoline, arguments, argument_bytes);
  } else if (stream.graph->invalidated) {
    return cudaErrorStreamCaptureInvalidated;
  } else {
    stream.graph->add_launch(shape, trampoline, arguments, argument_bytes);
  }
  return cudaSuccess;
}

void Machine::run(const simt::LaunchShape& shape, void (*trampoline)(const void*),
                  const void* arguments, size_t argument_bytes) {
  simt::Options options;
  options.shared_limit = limits.shared_bytes;
  options.outside = find_block;
  simt::Simulator simulator(options);
  Stream& stream = current(kTensorDevice);
  stream.next();
  ++launches;
  last_cluster = shape.cluster;
  const cudaError_t error = simt::simulate(shape, trampoline, arguments, argument_bytes);
  const std::string findings = simulator.finish().to_string();
  if (error != cudaSuccess || !findings.empty()) {
    find("a kernel is wrong: " + findings);
    TORCH_CHECK(false, "a kernel is wrong: ", cudaGetErrorString(error), "\n", findings);
  }
  for (const simt::Touched& touched : simulator.touched()) note_access(touched, stream);
}

void Machine::fail(Call call, cudaError_t error, int after) {
  injections_[static_cast<int>(call)] = {error, after};
}

cudaError_t Machine::injected(Call call) {
  Injection& injection = injections_[static_cast<int>(call)];
  if (injection.error == cudaSuccess || injection.after-- > 0) return cudaSuccess;
  return std::exchange(injection.error, cudaSuccess);
}

void Machine::find(const std::string& message) {
  const std::lock_guard lock(mutex_);
  findings_.push_back(message);
}

std::vector<std::string> Machine::take_findings() {
  const std::lock_guard lock(mutex_);
  return std::exchange(findings_, {});
}

}  // namespace retnet::on_simt
