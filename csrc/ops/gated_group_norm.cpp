// SPDX-License-Identifier: Apache-2.0
#include "ops/gated_group_norm.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/check.h"

namespace retnet::ops {

// Checks
// -------------------------------------------------------------------------------------------------

namespace {

/// Checks weight or bias. It has one value for each channel, or for each channel of each head.
void check_affine(const char* op, const char* name, const std::optional<at::Tensor>& t,
                  const char* x_name, const at::Tensor& x) {
  if (!t) return;
  const auto H = x.sym_size(-2), Dv = x.sym_size(-1);
  if (t->dim() == 2) {
    check_shape(op, name, *t, {H, Dv}, "[H, Dv]");
  } else {
    check_rank(op, name, *t, 1, "[Dv] or [H, Dv]");
    check_shape(op, name, *t, {Dv}, "[Dv]");
  }
  TORCH_CHECK(t->scalar_type() == x.scalar_type() || t->scalar_type() == accumulate_dtype(x), op,
              ": ", name, " must be ", dtype_name(x.scalar_type()), " (like ", x_name, ") or ",
              dtype_name(accumulate_dtype(x)), " (the accumulation dtype), got ",
              dtype_name(t->scalar_type()));
  check_device(op, name, *t, x, x_name);
}

}  // namespace

void check_norm(const char* op, const char* name, const at::Tensor& x,
                const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
                double eps, std::string_view norm) {
  TORCH_CHECK(x.sym_size(-1) >= 1, op, ": ", name, " must have Dv >= 1, got ", x.sym_sizes());
  check_affine(op, "weight", weight, name, x);
  check_affine(op, "bias", bias, name, x);
  TORCH_CHECK(eps >= 0, op, ": eps must be at least 0, got ", eps);
  TORCH_CHECK(norm == "layer" || norm == "rms", op, ": norm must be \"layer\" or \"rms\", got \"",
              norm, "\"");
}

void check_gated_group_norm(const char* op, const at::Tensor& x,
                            const std::optional<at::Tensor>& gate,
                            const std::optional<at::Tensor>& weight,
                            const std::optional<at::Tensor>& bias, double eps,
                            std::string_view norm) {
  TORCH_CHECK(x.dim() >= 2, op, ": x must have shape [..., H, Dv], got ", x.sym_sizes());
  check_floating(op, "x", x);
  if (gate) check_like(op, "gate", *gate, x, "x");
  check_norm(op, "x", x, weight, bias, eps, norm);
}

void check_gated_group_norm_grad(const at::Tensor& grad_out, const at::Tensor& x) {
  check_like("gated_group_norm_backward", "grad_out", grad_out, x, "x");
}

// Typed calls of the dispatcher
// -------------------------------------------------------------------------------------------------

at::Tensor gated_group_norm(const at::Tensor& x, const std::optional<at::Tensor>& gate,
                            const std::optional<at::Tensor>& weight,
                            const std::optional<at::Tensor>& bias, double eps,
                            std::string_view norm) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("retnet::gated_group_norm", "")
                             .typed<decltype(gated_group_norm)>();
  return op.call(x, gate, weight, bias, eps, norm);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gated_group_norm_backward(
    const at::Tensor& grad_out, const at::Tensor& x, const std::optional<at::Tensor>& gate,
    const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, double eps,
    std::string_view norm, std::array<bool, 4> output_mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("retnet::gated_group_norm_backward", "")
                             .typed<decltype(gated_group_norm_backward)>();
  return op.call(grad_out, x, gate, weight, bias, eps, norm, output_mask);
}

// Meta: shapes and dtypes alone
// -------------------------------------------------------------------------------------------------

namespace {

at::Tensor gated_group_norm_meta(const at::Tensor& x, const std::optional<at::Tensor>& gate,
                                 const std::optional<at::Tensor>& weight,
                                 const std::optional<at::Tensor>& bias, double eps,
                                 std::string_view norm) {
  check_gated_group_norm("gated_group_norm", x, gate, weight, bias, eps, norm);
  return at::empty_symint(x.sym_sizes(), x.options());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gated_group_norm_backward_meta(
    const at::Tensor& grad_out, const at::Tensor& x, const std::optional<at::Tensor>& gate,
    const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, double eps,
    std::string_view norm, std::array<bool, 4> output_mask) {
  check_gated_group_norm("gated_group_norm_backward", x, gate, weight, bias, eps, norm);
  check_gated_group_norm_grad(grad_out, x);
  const auto like = [](bool needed, const std::optional<at::Tensor>& t) {
    return needed && t ? at::empty_symint(t->sym_sizes(), t->options()) : at::Tensor();
  };
  return {like(output_mask[0], x), like(output_mask[1], gate), like(output_mask[2], weight),
          like(output_mask[3], bias)};
}

}  // namespace

// Schema
// -------------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(retnet, m) {
  m.def(
      "gated_group_norm(Tensor x, Tensor? gate=None, Tensor? weight=None, Tensor? bias=None, *, "
      "float eps, str norm=\"layer\") -> Tensor out",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "gated_group_norm_backward(Tensor grad_out, Tensor x, Tensor? gate, Tensor? weight, "
      "Tensor? bias, *, float eps, str norm, bool[4] output_mask) -> (Tensor grad_x, "
      "Tensor grad_gate, Tensor grad_weight, Tensor grad_bias)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(retnet, Meta, m) {
  m.impl("gated_group_norm", gated_group_norm_meta);
  m.impl("gated_group_norm_backward", gated_group_norm_backward_meta);
}

}  // namespace retnet::ops
