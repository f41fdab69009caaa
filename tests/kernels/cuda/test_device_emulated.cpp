// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <span>

#include "test_device.h"

namespace retnet::kernels::cuda {

struct TestDevice::Implementation {
  simt::Simulator simulator;
};

TestDevice::TestDevice(const simt::Options& options)
    : implementation_(new Implementation{simt::Simulator(options)}) {}
TestDevice::~TestDevice() = default;

void* TestDevice::allocate(const void* values, size_t bytes, simt::Use use, const std::string& name,
                           size_t offset) {
  simt::Simulator& simulator = implementation_->simulator;
  const std::span span(static_cast<const std::byte*>(values), bytes);
  if (use == simt::Use::kInput) return simulator.input(span, name, offset);
  if (use == simt::Use::kInOut) return simulator.in_out(span, name, offset);
  return simulator.allocate(bytes, use, name, offset);
}

void TestDevice::copy_back(void* dst, const void* src, size_t bytes) {
  std::memcpy(dst, src, bytes);
}

const simt::Report& TestDevice::finish() { return implementation_->simulator.finish(); }
const simt::Report& TestDevice::report() const { return implementation_->simulator.report(); }

bool test_device_counts() { return true; }
DeviceLimits test_device_limits() { return {90, 132, kShared90}; }
bool can_run(int, size_t) { return true; }
size_t cases_left_out() { return 0; }
std::optional<double> time_launch(const std::function<cudaError_t()>&) { return {}; }
DeviceStatus test_device_status() { return {true, "the SIMT emulator"}; }
void leave_memory_to_sanitizer() {}

}  // namespace retnet::kernels::cuda
