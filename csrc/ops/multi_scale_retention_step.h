// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "../version.h"

namespace retnet::ops {

/// Decodes one token between the projections of a layer (Sun et al. 2023, Eq. 8). It computes
///
///     gated_group_norm(retention_step(rotary(q, k, positions, frequencies), v, log_decay, state),
///                      gate, weight, bias)
///
/// in the accumulation dtype from end to end and rounds to q's dtype once. The three operators in
/// sequence would round three times.
///
///   q, k          [B, H, Dk]       as in `rotary`, with style
///   v, gate       [B, H, Dv]       q's dtype
///   log_decay     [H]              as in `retention_step`, with scale and slots
///   state         [B, H, Dk, Dv]   as in `retention_step`, updated in place. With slots:
///                                  [S, H, Dk, Dv]
///   positions     [B]              as in `rotary`
///   frequencies   [Dk/2]           as in `rotary`
///   weight, bias  [Dv] or [H, Dv]  as in `gated_group_norm`, with eps and norm
///
/// Returns out [B, H, Dv] of q's dtype, contiguous. The batch entries that slots skip are 0.
///
/// The operator is not differentiable. It raises if grad mode is on and an input requires grad. It
/// increments the version of state.
RETNET_API at::Tensor multi_scale_retention_step(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
    const at::Tensor& log_decay, const at::Tensor& state, const at::Tensor& positions,
    const at::Tensor& frequencies, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double eps, std::string_view norm = "layer",
    std::string_view style = "interleaved", std::optional<double> scale = std::nullopt,
    const std::optional<at::Tensor>& slots = std::nullopt);

/// Checks shapes, dtypes, devices and options, and on the CPU the values of log_decay and slots.
/// Every implementation calls it first.
void check_multi_scale_retention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const at::Tensor& gate, const at::Tensor& log_decay,
                                      const at::Tensor& state, const at::Tensor& positions,
                                      const at::Tensor& frequencies,
                                      const std::optional<at::Tensor>& weight,
                                      const std::optional<at::Tensor>& bias, double eps,
                                      std::string_view norm, std::string_view style,
                                      const std::optional<at::Tensor>& slots);

}  // namespace retnet::ops
