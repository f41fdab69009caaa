// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace retnet::ops::composite {

/// The op for calls without a kernel. Implementations for a device fall back to it.
at::Tensor retention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& log_decay, const at::Tensor& state,
                          std::optional<double> scale, const std::optional<at::Tensor>& slots);

/// The step on q, k [B, H, Dk] and v [B, H, Dv] of the accumulation dtype, which were checked. It
/// updates the state and returns out [B, H, Dv] of that dtype, not rounded. The result of a skipped
/// row is undefined. The caller overwrites it after its own work on the rows.
at::Tensor accumulate_retention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const at::Tensor& log_decay, const at::Tensor& state,
                                     std::optional<double> scale,
                                     const std::optional<at::Tensor>& slots);

/// out [B, H, Dv] <- 0 in the rows that `slots` skips, in place.
void clear_skipped_rows_(const at::Tensor& out, const std::optional<at::Tensor>& slots);

/// `slots`, or slots that name the row of each token if there are none. With them, one row of a
/// batch can work on a copy of its row of the state.
at::Tensor slots_or_rows(const std::optional<at::Tensor>& slots, const at::Tensor& q);

}  // namespace retnet::ops::composite
