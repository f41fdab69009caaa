// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/check.h"

namespace retnet::ops {

/// Checks that log_decay is [H] of the accumulation dtype, on q's device. On the CPU, each value
/// must lie in [-inf, 0]. On other devices the values are not read, because that would wait for the
/// device.
inline void check_log_decay(const char* op, const at::Tensor& log_decay, const at::Tensor& q,
                            const c10::SymInt& H) {
  check_shape(op, "log_decay", log_decay, {H}, "[H]");
  check_dtype(op, "log_decay", log_decay, accumulate_dtype(q), "the state's dtype");
  check_device(op, "log_decay", log_decay, q, "q");
  if (!log_decay.device().is_cpu()) return;
  const auto values = log_decay.detach().to(at::kDouble).contiguous();
  for (int64_t h = 0; h < values.numel(); ++h) {
    const double value = values.const_data_ptr<double>()[h];
    TORCH_CHECK(value <= 0, op, ": log_decay must lie in [-inf, 0], got ", value, " in head ", h);
  }
}

}  // namespace retnet::ops
