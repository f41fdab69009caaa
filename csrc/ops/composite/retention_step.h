// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace retnet::ops::composite {

/// The operator as it runs where no kernel does: also what a device's implementation falls back to.
at::Tensor retention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& log_decay, const at::Tensor& state,
                          std::optional<double> scale, const std::optional<at::Tensor>& slots);

/// The checked step on q, k [B, H, Dk] and v [B, H, Dv] of the dtype of accumulation: updates the
/// state and returns out [B, H, Dv] of that dtype, unrounded. What it returns for a skipped row is
/// not defined, and is left for the caller to overwrite once its own work on the rows is done.
at::Tensor accumulate_retention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const at::Tensor& log_decay, const at::Tensor& state,
                                     std::optional<double> scale,
                                     const std::optional<at::Tensor>& slots);

/// out [B, H, Dv] <- 0 in the rows that slots skip, in place.
void clear_skipped_rows_(const at::Tensor& out, const std::optional<at::Tensor>& slots);

/// slots, or those that name the row of each token: by them one row of a batch works on a copy of
/// its row of the state.
at::Tensor slots_or_rows(const std::optional<at::Tensor>& slots, const at::Tensor& q);

}  // namespace retnet::ops::composite
