// SPDX-License-Identifier: Apache-2.0
//
// This file defines the names of c10::cuda (include/c10/cuda), and what the generic guards and events of
// torch call.
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "machine/graph.h"
#include "machine/machine.h"
#include "machine/memory.h"

namespace c10::cuda {

using retnet::on_simt::Call;
using retnet::on_simt::Machine;

namespace {

int current_device() {
  int device = 0;
  check(cudaGetDevice(&device));
  return device;
}

void set_device(int device) {
  check(retnet::simt::set_last_error(Machine::get().set_device(device)));
}

Stream torch_stream(const retnet::on_simt::Stream& stream) {
  const Device device(DeviceType::CUDA, static_cast<DeviceIndex>(stream.device));
  return Stream(Stream::UNSAFE, device, stream.id);
}

retnet::on_simt::Stream& stream_of(const Stream& stream) {
  return Machine::get().stream(stream.device_index(), static_cast<int>(stream.id()));
}

}  // namespace

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  TORCH_CHECK(false, "CUDA error: ", cudaGetErrorString(error));
}

CUDAStream::operator cudaStream_t() const {
  return reinterpret_cast<cudaStream_t>(&stream_of(stream_));
}

CUDAStream getCurrentCUDAStream(DeviceIndex device) {
  return CUDAStream(torch_stream(Machine::get().current(Machine::device_of(device, true))));
}

CUDAStream getStreamFromPool(bool, DeviceIndex device) {
  return CUDAStream(torch_stream(Machine::get().from_pool(Machine::device_of(device, true))));
}

CUDAGuard::CUDAGuard(Device device) : before_(current_device()) {
  // An error that an earlier call has left would be taken for one of this call.
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    Machine::get().find(std::string("a call has left an error behind: ") +
                        cudaGetErrorString(error));
  }
  check(retnet::simt::set_last_error(Machine::get().injected(Call::kSetDevice)));
  set_device(Machine::device_of(device.index(), device.is_cuda()));
}

CUDAGuard::~CUDAGuard() { set_device(before_); }

CUDAStreamGuard::CUDAStreamGuard(Stream stream)
    : device_before_(current_device()),
      current_(stream),
      before_(getCurrentCUDAStream(stream.device_index())) {
  set_device(stream.device_index());
  Machine::get().set_current(stream_of(stream));
}

CUDAStreamGuard::~CUDAStreamGuard() {
  Machine::get().set_current(stream_of(before_));
  set_device(device_before_);
}

CaptureStatus currentStreamCaptureStatusMayInitCtx() {
  const auto& graph = Machine::get().current(current_device()).graph;
  if (graph == nullptr) return CaptureStatus::None;
  return graph->invalidated ? CaptureStatus::Invalidated : CaptureStatus::Active;
}

namespace {

/// Events are the clocks of what comes before them.
class Guard final : public impl::DeviceGuardImplInterface {
 public:
  DeviceType type() const override { return DeviceType::CUDA; }
  Device getDevice() const override {
    return Device(DeviceType::CUDA, static_cast<DeviceIndex>(current_device()));
  }
  Device exchangeDevice(Device device) const override {
    const Device before = getDevice();
    setDevice(device);
    return before;
  }
  void setDevice(Device device) const override { set_device(device.index()); }
  void uncheckedSetDevice(Device device) const noexcept override {
    Machine::get().set_device(device.index());
  }
  Stream getStream(Device device) const override { return getCurrentCUDAStream(device.index()); }
  Stream exchangeStream(Stream stream) const override {
    const Stream before = getStream(stream.device());
    Machine::get().set_current(stream_of(stream));
    return before;
  }
  void destroyEvent(void* event, const DeviceIndex) const noexcept override {
    delete static_cast<retnet::on_simt::Clocks*>(event);
  }
  void record(void** event, const Stream& stream, const DeviceIndex,
              const EventFlag) const override {
    auto& after = stream_of(stream);
    if (after.graph != nullptr) after.graph->invalidated = true;  // no capture of ours forks
    if (*event == nullptr) *event = new retnet::on_simt::Clocks;
    after.next();
    *static_cast<retnet::on_simt::Clocks*>(*event) = after.seen;
  }
  void block(void* event, const Stream& stream) const override {
    auto& seen = stream_of(stream).seen;
    const auto& before = *static_cast<retnet::on_simt::Clocks*>(event);
    for (size_t i = 0; i < seen.size(); ++i) seen[i] = std::max(seen[i], before[i]);
  }
  bool queryEvent(void*) const override { return true; }
  DeviceIndex deviceCount() const noexcept override {
    return 0;
  }  // autograd needs no thread for it
};

// This runs before the first call of an operator.
[[maybe_unused]] const bool installed = [] {
  static Guard& guard = *new Guard;
  impl::device_guard_impl_registry[static_cast<size_t>(DeviceType::CUDA)].store(&guard);
  retnet::simt::use_runtime_library(&Machine::get());
  retnet::on_simt::install_allocator();
  return true;
}();

}  // namespace
}  // namespace c10::cuda
