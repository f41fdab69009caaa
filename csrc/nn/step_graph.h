// SPDX-License-Identifier: Apache-2.0
//
// A CUDA graph of a step of decoding. step_graph.cpp is of builds without CUDA, cuda/step_graph.cpp of
// those with it.
#pragma once

#include <torch/types.h>

#include <functional>
#include <string>

namespace retnet::nn {

/// What `record_step` gives: a call that repeats the step, or none and why there is none.
struct StepGraph {
  std::function<void()> replay;
  std::string refusal;
};

/// Records what `step` launches on a CUDA device, without running it.
StepGraph record_step(const torch::Device& device, const std::function<void()>& step);

/// Runs `step` on a stream of its own, as a recording does, after and before all other work.
void run_beside(const torch::Device& device, const std::function<void()>& step);

}  // namespace retnet::nn
