// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/Device.h>
#include <c10/cuda/CUDAStream.h>

namespace c10::cuda {

/// Makes a device current. Tensors of the CPU stand for tensors of one CUDA device.
class CUDAGuard {
 public:
  explicit CUDAGuard(Device device);
  ~CUDAGuard();
  CUDAGuard(const CUDAGuard&) = delete;
  CUDAGuard& operator=(const CUDAGuard&) = delete;

 private:
  int before_;
};

/// Makes a stream and its device current.
class CUDAStreamGuard {
 public:
  explicit CUDAStreamGuard(Stream stream);
  ~CUDAStreamGuard();
  CUDAStreamGuard(const CUDAStreamGuard&) = delete;
  CUDAStreamGuard& operator=(const CUDAStreamGuard&) = delete;

  CUDAStream current_stream() const { return current_; }

 private:
  int device_before_;
  CUDAStream current_;
  CUDAStream before_;
};

}  // namespace c10::cuda
