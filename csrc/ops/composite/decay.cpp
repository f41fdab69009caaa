// SPDX-License-Identifier: Apache-2.0
#include "ops/composite/decay.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>

#include <limits>

namespace retnet::ops {

Decay::Decay(const at::Tensor& log_decay) : dtype_(log_decay.scalar_type()) {
  log_decay_ = log_decay.detach().to(at::kDouble);
  log_decay_ = log_decay_.masked_fill(log_decay_.gt(0), std::numeric_limits<double>::quiet_NaN());
  gamma_is_zero_ = log_decay_.eq(-std::numeric_limits<double>::infinity());
}

at::Tensor Decay::powers(int64_t n, int64_t first) const {
  const auto exponent = at::arange(first, first + n, log_decay_.options());
  auto log_power = log_decay_.unsqueeze(-1) * exponent;
  // 0 * -inf is NaN, and gamma^0 is 1 also for gamma = 0. A NaN log_decay stays NaN.
  log_power.masked_fill_(gamma_is_zero_.unsqueeze(-1).logical_and(exponent.eq(0)), 0.0);
  return log_power.exp_().to(dtype_);
}

at::Tensor Decay::matrix(int64_t rows, int64_t cols, int64_t first_row) const {
  // Entry 0 of the table is the zero above the diagonal, entry 1 + n is gamma^n.
  const auto table = at::cat(
      {at::zeros({heads(), 1}, log_decay_.options().dtype(dtype_)), powers(first_row + rows)}, -1);
  const auto options = log_decay_.options().dtype(at::kLong);
  const auto i = at::arange(first_row, first_row + rows, options).unsqueeze(-1);
  const auto j = at::arange(cols, options);
  const auto entry = (i - j).clamp_min_(-1).add_(1);
  return table.index_select(-1, entry.flatten()).view({heads(), rows, cols});
}

void Decay::decay_(at::Tensor& state, int64_t n) const {
  const auto factor = (log_decay_ * static_cast<double>(n)).expm1_().to(dtype_);
  state.addcmul_(state, factor.view({-1, 1, 1}));
  zero_where_gamma_is_zero_(state);
}

void Decay::zero_where_gamma_is_zero_(at::Tensor& state) const {
  state.masked_fill_(gamma_is_zero_.view({-1, 1, 1}), 0.0);
}

}  // namespace retnet::ops
