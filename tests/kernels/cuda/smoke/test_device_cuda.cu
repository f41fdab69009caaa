// SPDX-License-Identifier: Apache-2.0
//
// The cases run on this device on a GPU. Its arrays come from cudaMalloc and lie between red zones.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <stdexcept>

#include "test_device.h"

namespace retnet::kernels::cuda {
namespace {

constexpr size_t kRedZone = 256;  // bytes, on both sides of an array; keeps its alignment
constexpr unsigned char kRedByte = 0xa5, kNanByte = 0xff;  // 0xff...: NaN in every format

bool memory_left_to_sanitizer = false;
size_t left_out = 0;

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

int attribute(cudaDeviceAttr which) {
  int value = 0;
  require(cudaDeviceGetAttribute(&value, which, 0), "cudaDeviceGetAttribute");
  return value;
}

/// 13000 -> "13.0"
std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

__global__ void probe_kernel() {}

}  // namespace

struct TestDevice::Implementation {
  struct Array {
    std::string name;
    simt::Use use;
    std::byte* base;  // of the allocation
    size_t front, bytes, back;
    std::vector<std::byte> values;  // of an input

    std::byte* data() const { return base + front; }
  };

  std::vector<Array> arrays;
  simt::Report report;

  void find(simt::FindingKind kind, const Array& array, const char* detail) {
    simt::Finding finding{kind, "", "", array.name + ": " + detail};
    report.findings.push_back(finding);
  }

  /// Looks at the red zones of an array and, of an input, at its values.
  void inspect(const Array& array) {
    std::vector<std::byte> now(array.front + array.bytes + array.back);
    copy_back(now.data(), array.base, now.size());
    const auto red = [](std::byte x) { return x == std::byte{kRedByte}; };
    const auto data = now.begin() + static_cast<ptrdiff_t>(array.front);
    const auto end = data + static_cast<ptrdiff_t>(array.bytes);
    if (!std::all_of(now.begin(), data, red)) {
      find(simt::FindingKind::kGlobalOutOfBounds, array, "written before its start");
    }
    if (!std::all_of(end, now.end(), red)) {
      find(simt::FindingKind::kGlobalOutOfBounds, array, "written after its end");
    }
    if (array.use == simt::Use::kInput &&
        !std::equal(data, end, array.values.begin(), array.values.end())) {
      find(simt::FindingKind::kGlobalReadOnly, array, "an input has changed");
    }
  }
};

TestDevice::TestDevice(const simt::Options&) : implementation_(new Implementation) {}

TestDevice::~TestDevice() {
  for (const Implementation::Array& array : implementation_->arrays) cudaFree(array.base);
}

void* TestDevice::allocate(const void* values, size_t bytes, simt::Use use, const std::string& name,
                           size_t offset) {
  Implementation::Array array{name, use, nullptr, offset, bytes, 0, {}};
  if (memory_left_to_sanitizer) {
    if (bytes == 0) array.back = 1;  // an array of nothing has an address too
  } else {
    array.front += kRedZone;
    array.back = kRedZone;
  }
  const size_t all = array.front + bytes + array.back;
  require(cudaMalloc(&array.base, all), "cudaMalloc");
  implementation_->arrays.push_back(array);
  if (!memory_left_to_sanitizer) {
    require(cudaMemset(array.base, kRedByte, all), "cudaMemset");
    if (bytes > 0) require(cudaMemset(array.data(), kNanByte, bytes), "cudaMemset");
  }
  if (values != nullptr && bytes > 0) {
    require(cudaMemcpy(array.data(), values, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    const auto* first = static_cast<const std::byte*>(values);
    if (use == simt::Use::kInput && !memory_left_to_sanitizer) {
      implementation_->arrays.back().values.assign(first, first + bytes);
    }
  }
  return array.data();
}

void TestDevice::copy_back(void* dst, const void* src, size_t bytes) {
  require(cudaMemcpy(dst, src, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
}

const simt::Report& TestDevice::finish() {
  require(cudaGetLastError(), "launch");
  require(cudaDeviceSynchronize(), "kernel");
  implementation_->report = {};
  if (!memory_left_to_sanitizer) {
    for (const auto& array : implementation_->arrays) implementation_->inspect(array);
  }
  return report();
}

const simt::Report& TestDevice::report() const { return implementation_->report; }

bool test_device_counts() { return false; }

DeviceLimits test_device_limits() {
  static const DeviceLimits limits{
      10 * attribute(cudaDevAttrComputeCapabilityMajor) +
          attribute(cudaDevAttrComputeCapabilityMinor),
      attribute(cudaDevAttrMultiProcessorCount),
      static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))};
  return limits;
}

bool can_run(int capability, size_t shared_bytes) {
  const DeviceLimits limits = test_device_limits();
  const bool can = limits.capability >= capability && limits.shared_bytes >= shared_bytes;
  left_out += can ? 0 : 1;
  return can;
}

size_t cases_left_out() { return left_out; }

std::optional<double> time_launch(const std::function<cudaError_t()>& launch) {
  constexpr int kWarmUp = 3, kRepeats = 21;
  constexpr float kLeast =
      0.2f;  // milliseconds between two events, whose resolution is about 0.5 us
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "cudaEventCreate");
  require(cudaEventCreate(&end), "cudaEventCreate");
  const auto milliseconds = [&](int launches) {
    require(cudaEventRecord(begin), "cudaEventRecord");
    for (int i = 0; i < launches; ++i) require(launch(), "launch");
    require(cudaEventRecord(end), "cudaEventRecord");
    require(cudaEventSynchronize(end), "kernel");
    float elapsed = 0;
    require(cudaEventElapsedTime(&elapsed, begin, end), "cudaEventElapsedTime");
    return elapsed;
  };
  milliseconds(kWarmUp);
  const int launches = static_cast<int>(std::clamp(kLeast / milliseconds(1), 1.0f, 100.0f));
  std::vector<double> times;
  for (int i = 0; i < kRepeats; ++i) times.push_back(1e6 * milliseconds(launches) / launches);
  std::nth_element(times.begin(), times.begin() + kRepeats / 2, times.end());
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return times[kRepeats / 2];
}

DeviceStatus test_device_status() {
  int driver = 0, runtime = 0, devices = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const std::string versions =
      "CUDA of the driver " + version(driver) + ", of the runtime " + version(runtime);
  const cudaError_t counted = cudaGetDeviceCount(&devices);
  if (driver == 0) return {false, "no CUDA driver (the runtime is " + version(runtime) + ")"};
  if (counted == cudaErrorInsufficientDriver) {
    return {false, "the driver is too old (" + versions + ")"};
  }
  if (counted == cudaErrorNoDevice || (counted == cudaSuccess && devices == 0)) {
    return {false, "no CUDA device (" + versions + ")"};
  }
  cudaDeviceProp properties{};
  cudaError_t error = counted;
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&properties, 0);
  if (error == cudaSuccess) error = cudaDeviceSynchronize();
  if (error != cudaSuccess) {
    return {false, std::string(cudaGetErrorString(error)) + " (" + versions + ")"};
  }
  const std::string name = std::string(properties.name) + ", sm_" +
                           std::to_string(10 * properties.major + properties.minor);
  cudaFuncAttributes attributes{};
  if (cudaFuncGetAttributes(&attributes, probe_kernel) != cudaSuccess) {
    cudaGetLastError();
    return {false, name + ": this program has no code for it (" + versions + ")"};
  }
  return {true, name + ", code for sm_" + std::to_string(attributes.binaryVersion) + ", " +
                    std::to_string(properties.multiProcessorCount) + " multiprocessors; " +
                    versions};
}

void leave_memory_to_sanitizer() { memory_left_to_sanitizer = true; }

}  // namespace retnet::kernels::cuda
