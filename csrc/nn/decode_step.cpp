// SPDX-License-Identifier: Apache-2.0
#include "nn/decode_step.h"

#include <ATen/autocast_mode.h>

#include <utility>

#include "nn/step_graph.h"

namespace retnet::nn {

namespace {

constexpr int kWarmUp = 2;  // these steps load handles, workspaces and kernels

}  // namespace

std::string graph_unsupported_reason(const RetNetForCausalLM& model, const torch::Device& device) {
  for (const auto& parameter : model->named_parameters()) {
    if (parameter.value().device() == device) continue;
    return c10::str(parameter.key(), " is on ", parameter.value().device(), ", the prompts on ",
                    device);
  }
  if (at::autocast::is_autocast_enabled(device.type())) {
    return "autocast is on; its casts of the weights may be freed before the graph replays";
  }
  return "";
}

DecodeStep::DecodeStep(RetNetForCausalLM model, RetNetState state)
    : model_(std::move(model)),
      state_(std::move(state)),
      ids_(torch::zeros({state_.positions.size(0), 1},
                        state_.positions.options().dtype(torch::kInt64))),
      until_record_(ids_.is_cuda() ? kWarmUp : -1) {}

torch::Tensor DecodeStep::operator()(const torch::Tensor& ids) {
  ids_.copy_(ids);
  if (until_record_ == 0) record();
  if (replay_) {
    replay_();
  } else if (until_record_ > 0) {
    --until_record_;
    run_beside(ids_.device(), [this] { step(); });
  } else {
    step();
  }
  return logits_;
}

void DecodeStep::step() {
  logits_ = model_->forward(ids_, state_, std::nullopt, std::nullopt, "chunkwise", /*inplace=*/true)
                .logits;
}

void DecodeStep::record() {
  until_record_ = -1;
  std::string reason = graph_unsupported_reason(model_, ids_.device());
  if (reason.empty()) {
    auto graph = record_step(ids_.device(), [this] { step(); });
    replay_ = std::move(graph.replay);
    reason = std::move(graph.unsupported_reason);
  }
  if (!reason.empty()) {
    TORCH_WARN_ONCE("generate: decodes without a CUDA graph: ", reason);
  }
}

}  // namespace retnet::nn
