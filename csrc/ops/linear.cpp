// SPDX-License-Identifier: Apache-2.0
#include "ops/linear.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <torch/library.h>

#include "ops/check.h"

namespace retnet::ops {

// Checks
// -------------------------------------------------------------------------------------------------

void check_linear(const at::Tensor& x, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias) {
  constexpr auto op = "linear";
  TORCH_CHECK(x.dim() >= 1, op, ": x must have shape [..., in], got ", x.sym_sizes());
  check_floating(op, "x", x);
  check_rank(op, "weight", weight, 2, "[out, in]");
  check_shape(op, "weight", weight, {weight.sym_size(0), x.sym_size(-1)}, "[out, in]");
  check_dtype(op, "weight", weight, x.scalar_type(), "like x");
  check_device(op, "weight", weight, x, "x");
  if (!bias) return;
  check_shape(op, "bias", *bias, {weight.sym_size(0)}, "[out]");
  check_dtype(op, "bias", *bias, x.scalar_type(), "like x");
  check_device(op, "bias", *bias, x, "x");
}

// Typed call of the dispatcher
// -------------------------------------------------------------------------------------------------

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight,
                  const std::optional<at::Tensor>& bias) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("retnet::linear", "")
                             .typed<decltype(linear)>();
  return op.call(x, weight, bias);
}

namespace {

at::Tensor linear_meta(const at::Tensor& x, const at::Tensor& weight,
                       const std::optional<at::Tensor>& bias) {
  check_linear(x, weight, bias);
  auto sizes = x.sym_sizes().vec();
  sizes.back() = weight.sym_size(0);
  return at::empty_symint(sizes, x.options());
}

at::Tensor linear_composite(const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias) {
  check_linear(x, weight, bias);
  return at::linear(x, weight, bias);
}

}  // namespace

// Schema
// -------------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(retnet, m) {
  m.def("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor out",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(retnet, Meta, m) { m.impl("linear", linear_meta); }
TORCH_LIBRARY_IMPL(retnet, CompositeExplicitAutograd, m) { m.impl("linear", linear_composite); }

}  // namespace retnet::ops
