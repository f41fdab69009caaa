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
/// batch entry is undefined. The caller overwrites it after its own work on the results.
at::Tensor accumulate_retention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const at::Tensor& log_decay, const at::Tensor& state,
                                     std::optional<double> scale,
                                     const std::optional<at::Tensor>& slots);

/// out [B, H, Dv] <- 0 in the batch entries that `slots` skips, in place.
void clear_skipped_(const at::Tensor& out, const std::optional<at::Tensor>& slots);

/// `slots`, or if there are none the slots 0 .. B - 1. With them, one entry of a batch can be
/// computed apart, on its state in the whole tensor.
at::Tensor slots_or_batch_entries(const std::optional<at::Tensor>& slots, const at::Tensor& q);

}  // namespace retnet::ops::composite
