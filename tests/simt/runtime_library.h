// SPDX-License-Identifier: Apache-2.0
//
// What takes the calls of CUDA's runtime library (cuda/cuda_runtime_api.h): the Simulator of the calling
// thread, or an object that records them or stands for a whole machine.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <map>

#include "simt/device.h"

namespace retnet::simt {

class RuntimeLibrary {
 public:
  virtual ~RuntimeLibrary() = default;
  virtual cudaError_t launch(const LaunchShape& shape, void (*trampoline)(const void*),
                             const void* arguments, size_t argument_bytes) = 0;
  virtual cudaError_t set_dynamic_shared(const void* kernel, int bytes) = 0;
  virtual cudaError_t get_code_architecture(int* architecture, const void* kernel) = 0;
  virtual cudaError_t get_device(int* device) = 0;
  virtual cudaError_t get_attribute(int* value, cudaDeviceAttr attribute, int device) = 0;
};

// From now on `library` takes the calls of all threads; null: the Simulator of each thread does.
void use_runtime_library(RuntimeLibrary* library);

// Runs the launch on the Simulator of this thread.
cudaError_t simulate(const LaunchShape& shape, void (*trampoline)(const void*),
                     const void* arguments, size_t argument_bytes);

// Returns the error, which cudaGetLastError returns once more.
cudaError_t set_last_error(cudaError_t error);

// The dynamic shared memory that kernels have been allowed to have. Above 48 KB each has to ask.
class DynamicShared {
 public:
  cudaError_t allow(const void* kernel, int bytes, size_t limit);
  bool allows(const LaunchShape& shape) const;

 private:
  std::map<const void*, int> bytes_;
};

}  // namespace retnet::simt
