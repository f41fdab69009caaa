// SPDX-License-Identifier: Apache-2.0
#include "nn/step_graph.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <exception>
#include <memory>
#include <string>

namespace retnet::nn {

namespace {

/// Makes another stream the current one. It starts after the work of the stream before, which waits
/// for it in `join`.
class StreamBeside {
 public:
  explicit StreamBeside(const torch::Device& device)
      : device_(device),
        current_(c10::cuda::getCurrentCUDAStream(device.index())),
        guard_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())) {
    order(current_, guard_.current_stream());
  }
  void join() { order(guard_.current_stream(), current_); }

 private:
  void order(const c10::cuda::CUDAStream& before, const c10::cuda::CUDAStream& after) {
    c10::Event event(c10::DeviceType::CUDA);
    event.record(before);
    event.block(after);
  }

  c10::cuda::CUDAGuard device_;
  c10::cuda::CUDAStream current_;
  c10::cuda::CUDAStreamGuard guard_;
};

/// Ends a recording of which nothing is kept.
void end_in_any_case(at::cuda::CUDAGraph& graph) {
  try {
    graph.capture_end();
  } catch (const std::exception&) {
  }
}

}  // namespace

void run_beside(const torch::Device& device, const std::function<void()>& step) {
  StreamBeside stream(device);
  step();
  stream.join();
}

StepGraph record_step(const torch::Device& device, const std::function<void()>& step) {
  if (c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None) {
    return {{}, "another graph is being recorded"};
  }
  const auto graph = std::make_shared<at::cuda::CUDAGraph>();
  try {
    StreamBeside stream(device);
    graph->capture_begin({0, 0}, cudaStreamCaptureModeThreadLocal);
    try {
      step();
    } catch (const std::exception&) {
      end_in_any_case(*graph);  // while its stream is current
      throw;
    }
    graph->capture_end();
  } catch (const std::exception& error) {
    const std::string message = error.what();  // a backtrace follows its first line
    return {{}, "recording it failed: " + message.substr(0, message.find('\n'))};
  }
  return {[graph] { graph->replay(); }, ""};
}

}  // namespace retnet::nn
