// SPDX-License-Identifier: Apache-2.0
//
// The device that the cases of this folder run on. It is the SIMT emulator (test_device_emulated.cpp) or a GPU
// (smoke/test_device_cuda.cu). The linker decides which one.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/cuda/device.h"
#include "simt/simt.h"

namespace retnet::kernels::cuda {

/// The memory of a few launches, and what they did wrong. Arrays are freed with the object. They are aligned
/// to 256 bytes plus `offset`. The host accesses them only by `read`.
class TestDevice {
 public:
  explicit TestDevice(const simt::Options& options = {});
  ~TestDevice();
  TestDevice(const TestDevice&) = delete;
  TestDevice& operator=(const TestDevice&) = delete;

  template <class T>
  const T* input(const std::vector<T>& values, const std::string& name, size_t offset = 0) {
    return copy(values, simt::Use::kInput, name, offset);
  }
  template <class T>
  T* in_out(const std::vector<T>& values, const std::string& name, size_t offset = 0) {
    return copy(values, simt::Use::kInOut, name, offset);
  }
  /// The array starts as NaN.
  template <class T>
  T* output(size_t count, const std::string& name, size_t offset = 0) {
    return static_cast<T*>(allocate(nullptr, count * sizeof(T), simt::Use::kOutput, name, offset));
  }
  template <class T>
  T* workspace(size_t count, const std::string& name, size_t offset = 0) {
    return static_cast<T*>(
        allocate(nullptr, count * sizeof(T), simt::Use::kWorkspace, name, offset));
  }

  /// Waits for the launches and looks for what they did wrong. The emulator finds most, and counts. A GPU
  /// only finds writes to inputs and beside arrays. Throws if a launch failed.
  const simt::Report& finish();
  const simt::Report& report() const;

  /// Copies an array to the host. It is called after finish().
  template <class T>
  std::vector<T> read(const T* ptr, size_t count) const {
    std::vector<T> values(count);
    if (count > 0) copy_back(values.data(), ptr, count * sizeof(T));
    return values;
  }

 private:
  template <class T>
  T* copy(const std::vector<T>& values, simt::Use use, const std::string& name, size_t offset) {
    return static_cast<T*>(allocate(values.data(), values.size() * sizeof(T), use, name, offset));
  }
  void* allocate(const void* values, size_t bytes, simt::Use use, const std::string& name,
                 size_t offset);
  static void copy_back(void* dst, const void* src, size_t bytes);

  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

/// Whether reports have the launches and their counts. Only those of the emulator do.
bool test_device_counts();
/// What the device can do. The emulator can do all that a kernel asks for.
DeviceLimits test_device_limits();
/// Whether it runs code for `capability` with blocks of so much shared memory. Cases that it cannot run are
/// left out and counted.
bool can_run(int capability, size_t shared_bytes);
size_t cases_left_out();

/// The median of the nanoseconds that a launch takes. The emulator returns nothing.
std::optional<double> time_launch(const std::function<cudaError_t()>& launch);

/// One line that names the device, its driver and the runtime, or says why it cannot be used.
struct DeviceStatus {
  bool usable = false;
  std::string line;
};
DeviceStatus test_device_status();

/// Arrays are as large as asked for, and start as nothing: what lies beside them is not watched. This leaves
/// accesses out of bounds and uninitialised reads to compute-sanitizer.
void leave_memory_to_sanitizer();

}  // namespace retnet::kernels::cuda
