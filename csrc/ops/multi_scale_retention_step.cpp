// SPDX-License-Identifier: Apache-2.0
#include "ops/multi_scale_retention_step.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/check.h"
#include "ops/gated_group_norm.h"
#include "ops/retention_step.h"
#include "ops/rotary.h"

namespace retnet::ops {

// Checks
// -------------------------------------------------------------------------------------------------

void check_multi_scale_retention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const at::Tensor& gate, const at::Tensor& log_decay,
                                      const at::Tensor& state, const at::Tensor& positions,
                                      const at::Tensor& frequencies,
                                      const std::optional<at::Tensor>& weight,
                                      const std::optional<at::Tensor>& bias, double eps,
                                      std::string_view norm, std::string_view style,
                                      const std::optional<at::Tensor>& slots) {
  constexpr auto op = "multi_scale_retention_step";
  check_retention_step(op, q, k, v, log_decay, state, slots);
  check_rotary(op, q, k, positions, frequencies, style);
  check_shape(op, "gate", gate, {q.sym_size(0), q.sym_size(1), v.sym_size(2)}, "[B, H, Dv]");
  check_dtype(op, "gate", gate, q.scalar_type(), "like q");
  check_device(op, "gate", gate, q, "q");
  check_norm(op, "v", v, weight, bias, eps, norm);
}

// Typed call of the dispatcher
// -------------------------------------------------------------------------------------------------

at::Tensor multi_scale_retention_step(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
    const at::Tensor& log_decay, const at::Tensor& state, const at::Tensor& positions,
    const at::Tensor& frequencies, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double eps, std::string_view norm,
    std::string_view style, std::optional<double> scale, const std::optional<at::Tensor>& slots) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("retnet::multi_scale_retention_step", "")
                             .typed<decltype(multi_scale_retention_step)>();
  return op.call(q, k, v, gate, log_decay, state, positions, frequencies, weight, bias, eps, norm,
                 style, scale, slots);
}

// Meta: shapes and dtypes alone
// -------------------------------------------------------------------------------------------------

namespace {

at::Tensor multi_scale_retention_step_meta(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
    const at::Tensor& log_decay, const at::Tensor& state, const at::Tensor& positions,
    const at::Tensor& frequencies, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double eps, std::string_view norm,
    std::string_view style, std::optional<double> /*scale*/,
    const std::optional<at::Tensor>& slots) {
  check_multi_scale_retention_step(q, k, v, gate, log_decay, state, positions, frequencies, weight,
                                   bias, eps, norm, style, slots);
  return at::empty_symint(v.sym_sizes(), q.options());
}

}  // namespace

// Schema
// -------------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(retnet, m) {
  m.def(
      "multi_scale_retention_step(Tensor q, Tensor k, Tensor v, Tensor gate, Tensor log_decay, "
      "Tensor(a!) state, Tensor positions, Tensor frequencies, *, Tensor? weight=None, "
      "Tensor? bias=None, float eps, str norm=\"layer\", str style=\"interleaved\", "
      "float? scale=None, Tensor? slots=None) -> Tensor out",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(retnet, Meta, m) {
  m.impl("multi_scale_retention_step", multi_scale_retention_step_meta);
}

}  // namespace retnet::ops
