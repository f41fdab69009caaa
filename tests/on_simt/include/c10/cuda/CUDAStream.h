// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Stream.h>
#include <cuda_runtime_api.h>

namespace c10::cuda {

class CUDAStream {
 public:
  explicit CUDAStream(Stream stream) : stream_(stream) {}

  operator Stream() const { return stream_; }
  operator cudaStream_t() const;
  DeviceIndex device_index() const { return stream_.device_index(); }
  Stream unwrap() const { return stream_; }

 private:
  Stream stream_;
};

/// Index -1 stands for the current device.
CUDAStream getCurrentCUDAStream(DeviceIndex device = -1);
CUDAStream getStreamFromPool(bool isHighPriority = false, DeviceIndex device = -1);

}  // namespace c10::cuda
