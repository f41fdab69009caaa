// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <utility>

namespace retnet::ops {

/// Raises if one of the named inputs requires grad while grad mode is on. Otherwise the result
/// would silently lack a gradient. `why` says why there is none, or what the user can do.
inline void refuse_gradient(
    const char* op, std::initializer_list<std::pair<const char*, std::optional<at::Tensor>>> inputs,
    const char* why) {
  if (!at::GradMode::is_enabled()) return;
  for (const auto& [name, x] : inputs) {
    TORCH_CHECK(!x || !x->defined() || !x->requires_grad(), op, ": ", name,
                " must not require grad while grad mode is on (", why, "), got requires_grad=True");
  }
}

/// Joins the results of a backward operator to the graph by a node that raises if it is
/// differentiated. Without the node, a second derivative would silently lack the part of this
/// operator.
inline void refuse_double_backward(const std::string& op,
                                   std::initializer_list<std::optional<at::Tensor>> inputs,
                                   std::initializer_list<at::Tensor*> results) {
  if (!at::GradMode::is_enabled()) return;
  torch::autograd::variable_list tracked;
  for (const auto& x : inputs) {
    if (x && x->defined() && x->requires_grad()) tracked.push_back(*x);
  }
  if (tracked.empty()) return;
  // The type by which torch owns a node is a shared_ptr until torch 2.14 and an intrusive_ptr from
  // 2.15 on.
  const decltype(torch::autograd::Edge::function) node(std::make_unique<torch::autograd::Error>(
      op + ": double backward is not supported", torch::autograd::collect_next_edges(tracked)));
  for (auto* result : results) {
    if (result->defined()) torch::autograd::set_history(*result, node);
  }
}

}  // namespace retnet::ops
