// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/cuda/CUDACachingAllocator.h>
#include <cuda_runtime_api.h>

#include <memory>
#include <utility>

namespace retnet::on_simt {
class Graph;
}

namespace at::cuda {

using MempoolId_t = std::pair<unsigned long long, unsigned long long>;

class CUDAGraph {
 public:
  CUDAGraph();
  ~CUDAGraph();
  CUDAGraph(const CUDAGraph&) = delete;
  CUDAGraph& operator=(const CUDAGraph&) = delete;

  void capture_begin(MempoolId_t pool = {0, 0},
                     cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal);
  void capture_end();
  void replay();

 private:
  std::shared_ptr<retnet::on_simt::Graph> graph_;
};

}  // namespace at::cuda
