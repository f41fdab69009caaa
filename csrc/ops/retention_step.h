// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "../version.h"

namespace retnet::ops {

/// One token of the recurrent form of retention (Sun et al. 2023, Eq. 6), with the state updated in
/// place. Per row b and head h, with gamma = exp(log_decay[h]):
///
///     state <- gamma state + k^T v
///     out    = scale q state
///
///   q, k       [B, H, Dk]      float32, float64, bfloat16 or float16; any strides
///   v          [B, H, Dv]      q's dtype
///   log_decay  [H]             ln gamma, in [-inf, 0]; the state's dtype. At -inf the old state is
///                              dropped, whatever it holds
///   state      [B, H, Dk, Dv]  float32 (float64 where q is float64), any strides without overlap;
///                              shares no memory with an input. With slots: [S, H, Dk, Dv]
///   scale      factor of q.k; absent = Dk^-0.5
///   slots      [B]             int32: row b takes state[slots[b]]; a negative one skips the row,
///                              which leaves the states alone and gives zeros. On the CPU a slot
///                              not below S and two equal slots raise; on other devices, where
///                              reading them would wait for the device, the result is undefined
///
/// Returns out [B, H, Dv] of q's dtype, contiguous. Computed in the state's dtype; out is rounded
/// to q's dtype once.
///
/// Not differentiable: raises when grad mode is on and an input requires grad. The state's version
/// goes up, so that a graph which has saved the state notices.
RETNET_API at::Tensor retention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const at::Tensor& log_decay, const at::Tensor& state,
                                     std::optional<double> scale = std::nullopt,
                                     const std::optional<at::Tensor>& slots = std::nullopt);

/// Every implementation's first statement: shapes, dtypes and devices, and on the CPU the values of
/// log_decay and slots. `op` is the operator that the messages name: the fused step checks its
/// retention by this too.
void check_retention_step(const char* op, const at::Tensor& q, const at::Tensor& k,
                          const at::Tensor& v, const at::Tensor& log_decay, const at::Tensor& state,
                          const std::optional<at::Tensor>& slots);

}  // namespace retnet::ops
