// SPDX-License-Identifier: Apache-2.0
//
// Rotary position embedding by ATen operations, in parts that the fused step of decoding shares.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace retnet::ops::composite {

/// The turn of every position and pair of channels, and which channels make a pair.
struct Rotation {
  at::Tensor cos, sin;  // [T, 1, Dk/2], [B, T, 1, Dk/2] or [B, 1, Dk/2]: 1 stands for the heads
  bool interleaved;
};

/// Angles in float64, cosine and sine rounded to `dtype`, the dtype of accumulation.
Rotation rotation_of(const at::Tensor& positions, const at::Tensor& frequencies,
                     std::string_view style, at::ScalarType dtype);

/// x turned, computed in the rotation's dtype, as a new contiguous tensor of dtype `out_dtype`.
at::Tensor rotate(const at::Tensor& x, const Rotation& rotation, at::ScalarType out_dtype);

/// `ops::rotary` and its gradients; the arguments have been checked.
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
