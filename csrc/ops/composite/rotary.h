// SPDX-License-Identifier: Apache-2.0
//
// Rotary position embedding, composed of ATen operators. The fused decode step shares its parts.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace retnet::ops::composite {

/// The rotation of each pair of channels at every position, and which channels make a pair.
struct Rotation {
  at::Tensor cos, sin;  // [T, 1, Dk/2], [B, T, 1, Dk/2] or [B, 1, Dk/2]: 1 stands for the heads
  bool interleaved;
};

/// Computes angles in float64 and rounds cosine and sine to `dtype`, the accumulation dtype.
Rotation rotation_of(const at::Tensor& positions, const at::Tensor& frequencies,
                     std::string_view style, at::ScalarType dtype);

/// Rotates x in the dtype of the rotation. Returns a new contiguous tensor of dtype `out_dtype`.
at::Tensor rotate(const at::Tensor& x, const Rotation& rotation, at::ScalarType out_dtype);

/// `ops::rotary` and its gradients. The arguments were checked.
std::tuple<at::Tensor, at::Tensor> rotary(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& positions,
                                          const at::Tensor& frequencies, std::string_view style);
std::tuple<at::Tensor, at::Tensor> rotary_backward(const std::optional<at::Tensor>& grad_rotated_q,
                                                   const std::optional<at::Tensor>& grad_rotated_k,
                                                   const at::Tensor& positions,
                                                   const at::Tensor& frequencies,
                                                   std::string_view style,
                                                   std::array<bool, 2> output_mask);

}  // namespace retnet::ops::composite
