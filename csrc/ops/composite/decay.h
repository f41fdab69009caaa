// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

namespace retnet::ops {

/// The powers gamma^n of every head, finite for every log_decay in [-inf, 0]: exponents are never
/// negative, gamma^0 is 1, and what gamma = 0 forgets is dropped by a select, since NaN * 0 is NaN.
/// Computed in float64, rounded once to log_decay's dtype. A positive or NaN log_decay gives NaN.
class Decay {
 public:
  explicit Decay(const at::Tensor& log_decay);

  int64_t num_heads() const { return log_decay_.size(0); }
  at::ScalarType dtype() const { return dtype_; }

  /// [H, n]: gamma^first, gamma^(first+1), ... (n entries, first >= 0).
  at::Tensor powers(int64_t n, int64_t first = 0) const;

  /// [H, rows, cols]: gamma^(i-j) where i >= j, else 0, with i = first_row + row and j = col: the
  /// matrix D of the paper's Eq. 5.
  at::Tensor matrix(int64_t rows, int64_t cols, int64_t first_row = 0) const;

  /// state <- gamma^n state, in place; state is [..., H, Dk, Dv] and n >= 1. Multiplies by
  /// expm1(n log gamma) and adds, because gamma^n rounded to float32 is off by the same factor
  /// every time, which accumulates over 1 / (1 - gamma) tokens.
  void decay_(at::Tensor& state, int64_t n) const;

  /// state <- 0 in the heads with gamma = 0, in place: what such a head has forgotten.
  void forget_(at::Tensor& state) const;

  /// [H] bool: the heads with gamma = 0.
  const at::Tensor& is_zero() const { return is_zero_; }

 private:
  at::Tensor log_decay_;  // [H] float64
  at::Tensor is_zero_;    // [H] bool
  at::ScalarType dtype_;
};

}  // namespace retnet::ops
