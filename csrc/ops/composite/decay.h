// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace retnet::ops {

/// The powers gamma^n of every head. They are computed in float64 and rounded once to the dtype of
/// log_decay.
///   - Every log_decay in [-inf, 0] gives finite powers, because exponents are never negative and
///     gamma^0 is 1.
///   - If gamma is 0, a select drops the old state, because NaN * 0 is NaN.
///   - A positive or NaN log_decay gives NaN.
class Decay {
 public:
  explicit Decay(const at::Tensor& log_decay);

  int64_t heads() const { return log_decay_.size(0); }
  at::ScalarType dtype() const { return dtype_; }

  /// [H, n]: gamma^first, gamma^(first+1), ... (n entries, first >= 0).
  at::Tensor powers(int64_t n, int64_t first = 0) const;

  /// The matrix D of Eq. 5 in the paper, [H, rows, cols]: gamma^(i-j) if i >= j, else 0, with
  /// i = first_row + row and j = col.
  at::Tensor matrix(int64_t rows, int64_t cols, int64_t first_row = 0) const;

  /// state <- state + (gamma^n - 1) state, in place. state is [..., H, Dk, Dv] and n >= 1. A
  /// product with gamma^n rounded to float32 would have the same relative error every time, and the
  /// errors would accumulate over 1 / (1 - gamma) tokens.
  void decay_(at::Tensor& state, int64_t n) const;

  /// state <- 0 in the heads with gamma = 0, in place.
  void zero_where_gamma_is_zero_(at::Tensor& state) const;

  /// [H] bool: the heads with gamma = 0.
  const at::Tensor& gamma_is_zero() const { return gamma_is_zero_; }

 private:
  at::Tensor log_decay_;      // [H] float64
  at::Tensor gamma_is_zero_;  // [H] bool
  at::ScalarType dtype_;
};

}  // namespace retnet::ops
