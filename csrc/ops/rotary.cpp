// SPDX-License-Identifier: Apache-2.0
#include "ops/rotary.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/check.h"

namespace retnet::ops {

// Checks
// -------------------------------------------------------------------------------------------------

namespace {

/// Checks that `x`, the argument called `name`, can be rotated by these positions and frequencies.
void check_rotation(const char* op, const char* name, const at::Tensor& x,
                    const at::Tensor& positions, const at::Tensor& frequencies,
                    std::string_view style) {
  TORCH_CHECK(x.dim() == 3 || x.dim() == 4, op, ": ", name,
              " must have shape [B, T, H, Dk] or [B, H, Dk], got ", x.sym_sizes());
  check_floating(op, name, x);
  const auto Dk = x.sym_size(-1);
  TORCH_CHECK(Dk >= 2 && Dk % 2 == 0, op, ": ", name, " must have an even Dk >= 2, got ",
              x.sym_sizes());
  if (x.dim() == 3) {
    check_shape(op, "positions", positions, {x.sym_size(0)}, "[B]");
  } else if (positions.dim() == 1) {
    check_shape(op, "positions", positions, {x.sym_size(1)}, "[T]");
  } else {
    check_rank(op, "positions", positions, 2, "[T] or [B, T]");
    check_shape(op, "positions", positions, {x.sym_size(0), x.sym_size(1)}, "[B, T]");
  }
  check_integer(op, "positions", positions);
  check_device(op, "positions", positions, x, name);
  check_shape(op, "frequencies", frequencies, {Dk / 2}, "[Dk / 2]");
  check_dtype(op, "frequencies", frequencies, at::kFloat, "whatever q's dtype");
  check_device(op, "frequencies", frequencies, x, name);
  TORCH_CHECK(style == "interleaved" || style == "half", op,
              ": style must be \"interleaved\" or \"half\", got \"", style, "\"");
}

}  // namespace

void check_rotary(const char* op, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& positions, const at::Tensor& frequencies,
                  std::string_view style) {
  check_rotation(op, "q", q, positions, frequencies, style);
  check_like(op, "k", k, q, "q");
}

void check_rotary_backward(const std::optional<at::Tensor>& grad_rotated_q,
                           const std::optional<at::Tensor>& grad_rotated_k,
                           const at::Tensor& positions, const at::Tensor& frequencies,
                           std::string_view style) {
  constexpr auto op = "rotary_backward";
  if (grad_rotated_q) {
    check_rotation(op, "grad_rotated_q", *grad_rotated_q, positions, frequencies, style);
  }
  if (grad_rotated_k) {
    check_rotation(op, "grad_rotated_k", *grad_rotated_k, positions, frequencies, style);
  }
  if (grad_rotated_q && grad_rotated_k) {
    check_like(op, "grad_rotated_k", *grad_rotated_k, *grad_rotated_q, "grad_rotated_q");
  }
}

// Typed calls of the dispatcher
// -------------------------------------------------------------------------------------------------

std::tuple<at::Tensor, at::Tensor> rotary(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& positions,
                                          const at::Tensor& frequencies, std::string_view style) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("retnet::rotary", "")
                             .typed<decltype(rotary)>();
  return op.call(q, k, positions, frequencies, style);
}

std::tuple<at::Tensor, at::Tensor> rotary_backward(const std::optional<at::Tensor>& grad_rotated_q,
                                                   const std::optional<at::Tensor>& grad_rotated_k,
                                                   const at::Tensor& positions,
                                                   const at::Tensor& frequencies,
                                                   std::string_view style,
                                                   std::array<bool, 2> output_mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("retnet::rotary_backward", "")
                             .typed<decltype(rotary_backward)>();
  return op.call(grad_rotated_q, grad_rotated_k, positions, frequencies, style, output_mask);
}

// Meta: shapes and dtypes alone
// -------------------------------------------------------------------------------------------------

namespace {

std::tuple<at::Tensor, at::Tensor> rotary_meta(const at::Tensor& q, const at::Tensor& k,
                                               const at::Tensor& positions,
                                               const at::Tensor& frequencies,
                                               std::string_view style) {
  check_rotary("rotary", q, k, positions, frequencies, style);
  return {at::empty_symint(q.sym_sizes(), q.options()),
          at::empty_symint(k.sym_sizes(), k.options())};
}

std::tuple<at::Tensor, at::Tensor> rotary_backward_meta(
    const std::optional<at::Tensor>& grad_rotated_q,
    const std::optional<at::Tensor>& grad_rotated_k, const at::Tensor& positions,
    const at::Tensor& frequencies, std::string_view style, std::array<bool, 2> output_mask) {
  check_rotary_backward(grad_rotated_q, grad_rotated_k, positions, frequencies, style);
  const auto like = [](bool needed, const std::optional<at::Tensor>& grad) {
    return needed && grad ? at::empty_symint(grad->sym_sizes(), grad->options()) : at::Tensor();
  };
  return {like(output_mask[0], grad_rotated_q), like(output_mask[1], grad_rotated_k)};
}

}  // namespace

// Schema
// -------------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(retnet, m) {
  m.def(
      "rotary(Tensor q, Tensor k, Tensor positions, Tensor frequencies, *, "
      "str style=\"interleaved\") -> (Tensor rotated_q, Tensor rotated_k)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "rotary_backward(Tensor? grad_rotated_q, Tensor? grad_rotated_k, Tensor positions, "
      "Tensor frequencies, *, str style, bool[2] output_mask) -> (Tensor grad_q, Tensor grad_k)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(retnet, Meta, m) {
  m.impl("rotary", rotary_meta);
  m.impl("rotary_backward", rotary_backward_meta);
}

}  // namespace retnet::ops
