// SPDX-License-Identifier: Apache-2.0
//
// Launches, on the host: all that the launchers of kernels use of CUDA's runtime library. The same code
// runs in the SIMT emulator, whose runtime library records and checks what it is called with.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>

namespace retnet::kernels::cuda::prim {

// Launches kernel(args...) and returns the error of this launch only, not an earlier one's.
template <class... Args>
cudaError_t launch(void (*kernel)(Args...), unsigned blocks, unsigned threads, cudaStream_t stream,
                   Args... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

// The same with a grid of up to three dimensions and `shared_bytes` of dynamic shared memory. Returns an
// error if the device does not have that much.
template <class... Args>
cudaError_t launch(void (*kernel)(Args...), dim3 grid, unsigned threads, size_t shared_bytes,
                   cudaStream_t stream, Args... args) {
  constexpr size_t kWithoutConsent = 48 << 10;
  if (shared_bytes > kWithoutConsent) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) {
      cudaGetLastError();  // this error is returned, not left for the next call
      return error;
    }
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

// Launches `blocks` blocks in clusters of `cluster`, which divides them; 1 is an ordinary launch. At
// most 48 KB of dynamic shared memory.
template <class... Args>
cudaError_t launch_clusters(void (*kernel)(Args...), unsigned blocks, unsigned cluster,
                            unsigned threads, size_t shared_bytes, cudaStream_t stream,
                            Args... args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

// The architecture that the code of a kernel was compiled for, as the current device runs it: 90 for
// sm_90; 0 if that is unknown. The runtime is asked once for each device.
class CodeArchitecture {
 public:
  template <class... Args>
  int of(void (*kernel)(Args...)) {
    int device = 0;
    if (cudaGetDevice(&device) != cudaSuccess) return unknown();
    const bool cached = device < kDevices;
    if (cached && known_[device] != 0) return known_[device];
    cudaFuncAttributes attributes{};
    if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess) return unknown();
    if (cached) known_[device] = attributes.ptxVersion;
    return attributes.ptxVersion;
  }

 private:
  static constexpr int kDevices = 64;
  static int unknown() {
    cudaGetLastError();  // not left for the next call
    return 0;
  }
  std::atomic<int> known_[kDevices] = {};
};

}  // namespace retnet::kernels::cuda::prim
