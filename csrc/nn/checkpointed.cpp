// SPDX-License-Identifier: Apache-2.0
#include "nn/checkpointed.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <map>
#include <string>
#include <unordered_set>
#include <utility>
#include <vector>

namespace retnet::nn {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Edge;
using torch::autograd::Node;
using torch::autograd::variable_list;

/// Sets autocast as it was in the forward pass, for the lifetime of the object. The cache is off,
/// because a weight that the first run cast without a graph must not serve the second run.
class AutocastAs {
 public:
  AutocastAs(at::DeviceType device, bool enabled, at::ScalarType dtype)
      : device_(device),
        enabled_(at::autocast::is_autocast_enabled(device)),
        dtype_(at::autocast::get_autocast_dtype(device)),
        cache_(at::autocast::is_autocast_cache_enabled()) {
    set(enabled, dtype, false);
  }
  AutocastAs(const AutocastAs&) = delete;
  AutocastAs& operator=(const AutocastAs&) = delete;
  ~AutocastAs() { set(enabled_, dtype_, cache_); }

 private:
  void set(bool enabled, at::ScalarType dtype, bool cache) {
    at::autocast::set_autocast_enabled(device_, enabled);
    at::autocast::set_autocast_dtype(device_, dtype);
    at::autocast::set_autocast_cache_enabled(cache);
  }

  at::DeviceType device_;
  bool enabled_;
  at::ScalarType dtype_;
  bool cache_;
};

/// Makes the graph of `outputs` end at `aliases` instead of `tensors`. torch runs the hooks of the
/// tensors whose gradients are asked for, and the inner pass would run them once too often.
void replace_ends(const variable_list& outputs, const variable_list& tensors,
                  const variable_list& aliases) {
  std::map<std::pair<Node*, uint32_t>, Edge> ends;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto end = torch::autograd::impl::gradient_edge(tensors[i]);
    ends[{end.function.get(), end.input_nr}] = torch::autograd::impl::gradient_edge(aliases[i]);
  }
  std::vector<Node*> next;
  for (const auto& output : outputs) next.push_back(output.grad_fn().get());
  std::unordered_set<Node*> seen;
  while (!next.empty()) {
    auto* node = next.back();
    next.pop_back();
    if (!seen.insert(node).second) continue;
    for (auto& edge : node->next_edges()) {
      if (!edge.is_valid()) continue;
      if (const auto end = ends.find({edge.function.get(), edge.input_nr}); end != ends.end()) {
        edge = end->second;
      } else {
        next.push_back(edge.function.get());
      }
    }
  }
}

/// What the backward pass needs besides tensors.
struct Call : torch::CustomClassHolder {
  std::shared_ptr<DecoderLayerImpl> layer;
  std::string form;
  bool autocast = false;
  at::ScalarType autocast_dtype = at::kFloat;

  variable_list run(const torch::Tensor& x, const std::optional<torch::Tensor>& state,
                    const torch::Tensor& positions,
                    const std::optional<torch::Tensor>& cu_seqlens) const {
    std::optional<AutocastAs> as_before;
    if (at::autocast::is_autocast_available(x.device().type())) {
      as_before.emplace(x.device().type(), autocast, autocast_dtype);
    }
    const auto [out, after] = layer->forward(x, state, positions, cu_seqlens, form);
    return {out, after};
  }
};

std::optional<torch::Tensor> maybe(const torch::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

struct Checkpointed : torch::autograd::Function<Checkpointed> {
  static variable_list forward(AutogradContext* ctx, const c10::intrusive_ptr<Call>& call,
                               const torch::Tensor& x, const std::optional<torch::Tensor>& state,
                               const torch::Tensor& positions,
                               const std::optional<torch::Tensor>& cu_seqlens,
                               at::TensorList parameters) {
    variable_list saved = {x, state.value_or(torch::Tensor()), positions,
                           cu_seqlens.value_or(torch::Tensor())};
    saved.insert(saved.end(), parameters.begin(), parameters.end());
    ctx->save_for_backward(saved);
    ctx->saved_data["call"] = c10::IValue::make_capsule(call);
    ctx->set_materialize_grads(false);
    return call->run(x, state, positions, cu_seqlens);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    TORCH_CHECK(!torch::GradMode::is_enabled(),
                "retnet::nn::RetNet: double backward is not supported");
    auto saved = ctx->get_saved_variables();
    const auto call = c10::static_intrusive_pointer_cast<Call>(ctx->saved_data["call"].toCapsule());
    const torch::AutoGradMode grad_mode(true);
    variable_list aliases;
    for (const auto& tensor : saved) {
      aliases.push_back(tensor.defined() ? tensor.detach().requires_grad_(tensor.requires_grad())
                                         : tensor);
    }
    const auto results = call->run(aliases[0], maybe(aliases[1]), saved[2], maybe(saved[3]));

    variable_list outputs, given;
    for (size_t i = 0; i < results.size(); ++i) {
      if (!grad_outputs[i].defined() || !results[i].requires_grad()) continue;
      outputs.push_back(results[i]);
      given.push_back(grad_outputs[i]);
    }
    variable_list grads(1 + saved.size());  // `call` comes first
    if (outputs.empty()) return grads;
    variable_list asked, parameters, their_aliases;
    for (size_t i = 0; i < saved.size(); ++i) {
      if (!saved[i].defined() || !saved[i].requires_grad()) continue;
      asked.push_back(aliases[i]);
      if (i < 4) continue;
      parameters.push_back(saved[i]);
      their_aliases.push_back(aliases[i]);
    }
    // Nothing else uses this graph: the inputs are aliases, and autocast keeps no cast weights.
    replace_ends(outputs, parameters, their_aliases);
    const auto found = torch::autograd::grad(outputs, asked, given, std::nullopt,
                                             /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0, next = 0; i < saved.size(); ++i) {
      if (saved[i].defined() && saved[i].requires_grad()) grads[1 + i] = found[next++];
    }
    return grads;
  }
};

}  // namespace

std::tuple<torch::Tensor, torch::Tensor> checkpointed(
    const std::shared_ptr<DecoderLayerImpl>& layer, const torch::Tensor& x,
    const std::optional<torch::Tensor>& state, const torch::Tensor& positions,
    const std::optional<torch::Tensor>& cu_seqlens, std::string_view form) {
  auto call = c10::make_intrusive<Call>();
  call->layer = layer;
  call->form = form;
  if (at::autocast::is_autocast_available(x.device().type())) {
    call->autocast = at::autocast::is_autocast_enabled(x.device().type());
    call->autocast_dtype = at::autocast::get_autocast_dtype(x.device().type());
  }
  auto results = Checkpointed::apply(call, x, state, positions, cu_seqlens,
                                     at::TensorList(layer->parameters()));
  return {std::move(results[0]), std::move(results[1])};
}

}  // namespace retnet::nn
