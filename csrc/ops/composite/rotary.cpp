// SPDX-License-Identifier: Apache-2.0
#include "ops/composite/rotary.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <utility>

#include "ops/check.h"
#include "ops/rotary.h"

namespace retnet::ops {
namespace composite {
namespace {

/// Returns views of the first and the second channel of each pair, [..., Dk/2] each.
std::pair<at::Tensor, at::Tensor> pairs_of(const at::Tensor& x, bool interleaved) {
  const int64_t half = x.size(-1) / 2;
  if (!interleaved) return {x.narrow(-1, 0, half), x.narrow(-1, half, half)};
  const auto pairs = x.unflatten(-1, {half, 2});
  return {pairs.select(-1, 0), pairs.select(-1, 1)};
}

/// Returns the rotation by the negative angles.
Rotation inverse(const Rotation& rotation) {
  return {rotation.cos, rotation.sin.neg(), rotation.interleaved};
}

}  // namespace

Rotation rotation_of(const at::Tensor& positions, const at::Tensor& frequencies,
                     std::string_view style, at::ScalarType dtype) {
  const auto angles = (positions.to(at::kDouble).unsqueeze(-1) * frequencies).unsqueeze(-2);
  return {angles.cos().to(dtype), angles.sin().to(dtype), style == "interleaved"};
}

at::Tensor rotate(const at::Tensor& x, const Rotation& rotation, at::ScalarType out_dtype) {
  const auto& [cos, sin, interleaved] = rotation;
  const auto [a, b] = pairs_of(x.to(cos.scalar_type()), interleaved);
  auto out = at::empty(x.sizes(), x.options().dtype(out_dtype));
  const auto [out_a, out_b] = pairs_of(out, interleaved);
  out_a.copy_((a * cos).sub_(b * sin));
  out_b.copy_((a * sin).add_(b * cos));
  return out;
}

std::tuple<at::Tensor, at::Tensor> rotary(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& positions,
                                          const at::Tensor& frequencies, std::string_view style) {
  const auto rotation = rotation_of(positions, frequencies, style, accumulate_dtype(q));
  return {rotate(q, rotation, q.scalar_type()), rotate(k, rotation, k.scalar_type())};
}

std::tuple<at::Tensor, at::Tensor> rotary_backward(const std::optional<at::Tensor>& grad_rotated_q,
                                                   const std::optional<at::Tensor>& grad_rotated_k,
                                                   const at::Tensor& positions,
                                                   const at::Tensor& frequencies,
                                                   std::string_view style,
                                                   std::array<bool, 2> output_mask) {
  const auto& any = grad_rotated_q ? grad_rotated_q : grad_rotated_k;
  if (!any) return {};
  const auto rotation = inverse(rotation_of(positions, frequencies, style, accumulate_dtype(*any)));
  const auto turned_back = [&](bool needed, const std::optional<at::Tensor>& grad) {
    return needed && grad ? rotate(*grad, rotation, grad->scalar_type()) : at::Tensor();
  };
  return {turned_back(output_mask[0], grad_rotated_q), turned_back(output_mask[1], grad_rotated_k)};
}

}  // namespace composite

namespace {

std::tuple<at::Tensor, at::Tensor> rotary_composite(const at::Tensor& q, const at::Tensor& k,
                                                    const at::Tensor& positions,
                                                    const at::Tensor& frequencies,
                                                    std::string_view style) {
  check_rotary("rotary", q, k, positions, frequencies, style);
  return composite::rotary(q, k, positions, frequencies, style);
}

std::tuple<at::Tensor, at::Tensor> rotary_backward_composite(
    const std::optional<at::Tensor>& grad_rotated_q,
    const std::optional<at::Tensor>& grad_rotated_k, const at::Tensor& positions,
    const at::Tensor& frequencies, std::string_view style, std::array<bool, 2> output_mask) {
  check_rotary_backward(grad_rotated_q, grad_rotated_k, positions, frequencies, style);
  return composite::rotary_backward(grad_rotated_q, grad_rotated_k, positions, frequencies, style,
                                    output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CompositeExplicitAutograd, m) {
  m.impl("rotary", rotary_composite);
  m.impl("rotary_backward", rotary_backward_composite);
}

}  // namespace retnet::ops
