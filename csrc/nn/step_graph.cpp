// SPDX-License-Identifier: Apache-2.0
#include "nn/step_graph.h"

namespace retnet::nn {

StepGraph record_step(const torch::Device& /*device*/, const std::function<void()>& /*step*/) {
  return {{}, "RetNet was built without CUDA"};
}

void run_beside(const torch::Device& /*device*/, const std::function<void()>& step) { step(); }

}  // namespace retnet::nn
