// SPDX-License-Identifier: Apache-2.0
//
// A CUDA graph of a decode step. Builds without CUDA compile step_graph.cpp, and builds with CUDA
// compile cuda/step_graph.cpp.
#pragma once

#include <torch/types.h>

#include <functional>
#include <string>

namespace retnet::nn {

/// The result of `record_step`: a function that repeats the step, or the reason why there is none.
struct StepGraph {
  std::function<void()> replay;
  std::string unsupported_reason;
};

/// Records the launches of `step` on a CUDA device, without running them.
StepGraph record_step(const torch::Device& device, const std::function<void()>& step);

/// Runs `step` on a stream of its own, as recording does. It runs after all earlier work and before
/// all later work.
void run_beside(const torch::Device& device, const std::function<void()>& step);

}  // namespace retnet::nn
