// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "../version.h"

namespace retnet::ops {

/// Rotary position embedding of queries and keys (Su et al. 2021; the theta of Sun et al. 2023,
/// Eq. 3). One call rotates both. With angle = position * frequencies[i], for each pair of channels
///
///     rotated[a] = x[a] cos(angle) - x[b] sin(angle)
///     rotated[b] = x[a] sin(angle) + x[b] cos(angle)
///
/// The pair is (a, b) = (2i, 2i + 1) for "interleaved" and (a, b) = (i, i + Dk/2) for "half". The
/// sign of the angle is the same for q and k, so that q.k depends only on the difference of the
/// positions.
///
///   q, k         [B, T, H, Dk] or [B, H, Dk]  Dk even; float32, float64, bfloat16 or float16; any
///                                             strides. They may be the same tensor
///   positions    [T] or [B, T], or [B]        int32 or int64; [B] if q is [B, H, Dk]
///   frequencies  [Dk/2]                       float32, radians per position
///
/// Returns rotated q and k of q's dtype. They are contiguous and share no memory with an input. The
/// angle is computed in float64, because a float32 product is off by 0.06 radians at position 10^6.
/// Its cosine and sine are rounded to float32 (they stay float64 if q is float64). The rotation is
/// computed in that dtype and rounded to q's dtype once.
///
/// Differentiable once in q and k. It raises if frequencies requires grad while grad mode is on.
RETNET_API std::tuple<at::Tensor, at::Tensor> rotary(const at::Tensor& q, const at::Tensor& k,
                                                     const at::Tensor& positions,
                                                     const at::Tensor& frequencies,
                                                     std::string_view style = "interleaved");

/// Gradients of `rotary` in q and k. They are the incoming gradients, rotated by the negative
/// angle. A gradient is undefined if `output_mask` does not require it or if the incoming gradient
/// is absent.
///
///   grad_rotated_q, grad_rotated_k   [B, T, H, Dk] or [B, H, Dk], any strides; absent = zeros
///
/// Differentiating the result raises.
RETNET_API std::tuple<at::Tensor, at::Tensor> rotary_backward(
    const std::optional<at::Tensor>& grad_rotated_q,
    const std::optional<at::Tensor>& grad_rotated_k, const at::Tensor& positions,
    const at::Tensor& frequencies, std::string_view style, std::array<bool, 2> output_mask);

/// Checks shapes, dtypes, devices and the style. Every implementation calls it first. Messages name
/// `op`, because the fused decode step calls it too.
void check_rotary(const char* op, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& positions, const at::Tensor& frequencies,
                  std::string_view style);

/// Checks the arguments of `rotary_backward`.
void check_rotary_backward(const std::optional<at::Tensor>& grad_rotated_q,
                           const std::optional<at::Tensor>& grad_rotated_k,
                           const at::Tensor& positions, const at::Tensor& frequencies,
                           std::string_view style);

}  // namespace retnet::ops
