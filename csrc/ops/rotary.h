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
/// Eq. 3), one call for both. With angle = position * frequencies[i], for each pair of channels
///
///     rotated[a] = x[a] cos(angle) - x[b] sin(angle)
///     rotated[b] = x[a] sin(angle) + x[b] cos(angle)
///
/// "interleaved": (a, b) = (2i, 2i + 1);   "half": (a, b) = (i, i + Dk/2). The sign of the angle is
/// the same for q and k, so that q.k depends on the difference of the positions alone.
///
///   q, k         [B, T, H, Dk] or [B, H, Dk]  Dk even; float32, float64, bfloat16 or float16; any
///                                             strides; the two may be one tensor
///   positions    [T] or [B, T], or [B]        int32 or int64; [B] beside [B, H, Dk]
///   frequencies  [Dk/2]                       float32, radians per position
///
/// Returns rotated q and k, contiguous, of q's dtype, sharing no memory with an input. The angle is
/// formed in float64 and its cosine and sine rounded to float32 (float64 where q is float64): a
/// float32 product is off by 0.06 radians at position 10^6. The rotation is computed in that dtype
/// and rounded to q's dtype once.
///
/// Differentiable once in q and k; frequencies that require grad raise while grad mode is on.
RETNET_API std::tuple<at::Tensor, at::Tensor> rotary(const at::Tensor& q, const at::Tensor& k,
                                                     const at::Tensor& positions,
                                                     const at::Tensor& frequencies,
                                                     std::string_view style = "interleaved");

/// Gradients of `rotary` in q and k: the incoming gradients turned by the negative angle. Undefined
/// where `output_mask` does not ask for it or the incoming gradient is absent.
///
///   grad_rotated_q, grad_rotated_k   [B, T, H, Dk] or [B, H, Dk], any strides; absent = zeros
///
/// Differentiating the result raises.
RETNET_API std::tuple<at::Tensor, at::Tensor> rotary_backward(
    const std::optional<at::Tensor>& grad_rotated_q,
    const std::optional<at::Tensor>& grad_rotated_k, const at::Tensor& positions,
    const at::Tensor& frequencies, std::string_view style, std::array<bool, 2> output_mask);

/// Every implementation's first statement: shapes, dtypes, devices and the style. `op` is the
/// operator that the messages name: the fused step checks its rotation by this too.
void check_rotary(const char* op, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& positions, const at::Tensor& frequencies,
                  std::string_view style);

/// The same of `rotary_backward`.
void check_rotary_backward(const std::optional<at::Tensor>& grad_rotated_q,
                           const std::optional<at::Tensor>& grad_rotated_k,
                           const at::Tensor& positions, const at::Tensor& frequencies,
                           std::string_view style);

}  // namespace retnet::ops
