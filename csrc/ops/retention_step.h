// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../version.h"

namespace retnet::ops {

/// One token of the recurrent form of retention (Sun et al. 2023, Eq. 6). It updates the state in
/// place. For each batch entry b and head h, with gamma = exp(log_decay[h]):
///
///     state <- gamma state + k^T v
///     out    = scale q state
///
///   q, k       [B, H, Dk]      float32, float64, bfloat16 or float16; any strides
///   v          [B, H, Dv]      q's dtype
///   log_decay  [H]             ln gamma, in [-inf, 0]; the state's dtype. At -inf the old state is
///                              ignored, even if it holds NaN
///   state      [B, H, Dk, Dv]  float32 (float64 if q is float64), any strides. It must not overlap
///                              itself or share memory with an input. [S, H, Dk, Dv] with slots
///   scale      factor of q.k; absent = Dk^-0.5
///   slots      [B]             int32. Batch entry b uses state[slots[b]]. A negative slot skips the
///                              entry: its output is 0, and no state changes. The slots must be
///                              distinct and below S. The CPU raises if they are not. Other devices
///                              do not read them on the host, so the result there is undefined
///
/// Returns out [B, H, Dv] of q's dtype, contiguous. It is computed in the state's dtype and rounded
/// to q's dtype once.
///
/// The operator is not differentiable. It raises if grad mode is on and an input requires grad. It
/// increments the version of state, so that autograd detects the change if a graph has saved the
/// state.
RETNET_API at::Tensor retention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const at::Tensor& log_decay, const at::Tensor& state,
                                     std::optional<double> scale = std::nullopt,
                                     const std::optional<at::Tensor>& slots = std::nullopt);

/// Checks shapes, dtypes and devices, and on the CPU the values of log_decay and slots. Every
/// implementation calls it first. Messages name `op`, because the fused decode step calls it too.
void check_retention_step(const char* op, const at::Tensor& q, const at::Tensor& k,
                          const at::Tensor& v, const at::Tensor& log_decay, const at::Tensor& state,
                          const std::optional<at::Tensor>& slots);

}  // namespace retnet::ops
