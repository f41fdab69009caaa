// SPDX-License-Identifier: Apache-2.0
#include "simt/runtime_library.h"

#include <cuda_runtime.h>

#include <atomic>
#include <utility>

#include "simt/runtime/simulator_library.h"

namespace retnet::simt {
namespace {

std::atomic<RuntimeLibrary*> library_in_use = nullptr;
thread_local cudaError_t last_error = cudaSuccess;

RuntimeLibrary& library() {
  RuntimeLibrary* const in_use = library_in_use;
  return in_use != nullptr ? *in_use : simulator_library();
}

}  // namespace

void use_runtime_library(RuntimeLibrary* library) { library_in_use = library; }

cudaError_t set_last_error(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

cudaError_t launch(const LaunchShape& shape, void (*trampoline)(const void*), const void* arguments,
                   size_t argument_bytes) {
  return set_last_error(library().launch(shape, trampoline, arguments, argument_bytes));
}

LaunchShape shape_of(const cudaLaunchConfig_t& config, const void* kernel) {
  LaunchShape shape{config.gridDim, config.blockDim, config.dynamicSmemBytes, 1,
                    kernel,         config.stream};
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id != cudaLaunchAttributeClusterDimension) continue;
    const auto& cluster = config.attrs[i].val.clusterDim;
    shape.cluster = cluster.x * cluster.y * cluster.z;
  }
  return shape;
}

cudaError_t DynamicShared::allow(const void* kernel, int bytes, size_t limit) {
  if (bytes < 0 || static_cast<size_t>(bytes) > limit) return cudaErrorInvalidValue;
  bytes_[kernel] = bytes;
  return cudaSuccess;
}

bool DynamicShared::allows(const LaunchShape& shape) const {
  const auto found = bytes_.find(shape.kernel);
  const size_t allowed = found == bytes_.end() ? 0 : found->second;
  return shape.dynamic_shared <= 48 << 10 || shape.dynamic_shared <= allowed;
}

}  // namespace retnet::simt

using retnet::simt::library;
using retnet::simt::set_last_error;

cudaError_t cudaGetLastError() { return std::exchange(retnet::simt::last_error, cudaSuccess); }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
    case cudaErrorInvalidResourceHandle:
      return "invalid resource handle";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorNotSupported:
      return "operation not supported";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDevice(int* device) { return set_last_error(library().get_device(device)); }

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  return set_last_error(library().get_attribute(value, attribute, device));
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
  return set_last_error(library().set_dynamic_shared(kernel, value));
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel) {
  return set_last_error(library().get_code_architecture(&attributes->ptxVersion, kernel));
}
