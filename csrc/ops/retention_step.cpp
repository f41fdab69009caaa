// SPDX-License-Identifier: Apache-2.0
#include "ops/retention_step.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/check.h"
#include "ops/log_decay.h"
#include "ops/state.h"

namespace retnet::ops {

// Checks
// -------------------------------------------------------------------------------------------------

void check_retention_step(const char* op, const at::Tensor& q, const at::Tensor& k,
                          const at::Tensor& v, const at::Tensor& log_decay, const at::Tensor& state,
                          const std::optional<at::Tensor>& slots) {
  check_rank(op, "q", q, 3, "[B, H, Dk]");
  check_floating(op, "q", q);
  const auto B = q.sym_size(0), H = q.sym_size(1), Dk = q.sym_size(2);
  TORCH_CHECK(Dk >= 1, op, ": q must have Dk >= 1, got ", q.sym_sizes());
  check_shape(op, "k", k, {B, H, Dk}, "[B, H, Dk]");
  check_rank(op, "v", v, 3, "[B, H, Dv]");
  check_shape(op, "v", v, {B, H, v.sym_size(2)}, "[B, H, Dv]");
  TORCH_CHECK(v.sym_size(2) >= 1, op, ": v must have Dv >= 1, got ", v.sym_sizes());
  check_dtype(op, "k", k, q.scalar_type(), "like q");
  check_dtype(op, "v", v, q.scalar_type(), "like q");
  check_device(op, "k", k, q, "q");
  check_device(op, "v", v, q, "q");
  check_log_decay(op, log_decay, q, H);
  check_state(op, state, q, v, slots);
}

// Typed call of the dispatcher
// -------------------------------------------------------------------------------------------------

at::Tensor retention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& log_decay, const at::Tensor& state,
                          std::optional<double> scale, const std::optional<at::Tensor>& slots) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("retnet::retention_step", "")
                             .typed<decltype(retention_step)>();
  return op.call(q, k, v, log_decay, state, scale, slots);
}

// Meta: shapes and dtypes alone
// -------------------------------------------------------------------------------------------------

namespace {

at::Tensor retention_step_meta(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const at::Tensor& log_decay, const at::Tensor& state,
                               std::optional<double> /*scale*/,
                               const std::optional<at::Tensor>& slots) {
  check_retention_step("retention_step", q, k, v, log_decay, state, slots);
  return at::empty_symint(v.sym_sizes(), q.options());
}

}  // namespace

// Schema
// -------------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(retnet, m) {
  m.def(
      "retention_step(Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor(a!) state, *, "
      "float? scale=None, Tensor? slots=None) -> Tensor out",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(retnet, Meta, m) { m.impl("retention_step", retention_step_meta); }

}  // namespace retnet::ops
