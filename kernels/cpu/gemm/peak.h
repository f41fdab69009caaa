// SPDX-License-Identifier: Apache-2.0
//
// The most that an instruction set can do: multiply-adds between registers, whose rate is the
// ceiling that benchmarks measure kernels by.
#pragma once

#include "kernels/cpu/gemm/operand.h"

namespace retnet::kernels::cpu {
namespace {

/// Enough sums that none waits for its own last step, few enough for the registers of every set.
constexpr int kPeakSums = 12;

template <class Op, int... i>
RETNET_INLINE void peak_step(F<Op::kLanes> (&sum)[kPeakSums], const F<Op::kLanes>& factor,
                             const F<Op::kLanes>& x, std::integer_sequence<int, i...>) {
  const auto step = [&](F<Op::kLanes>& s) {
    if constexpr (Op::kDepth == 1) {
      s = s * factor + x;  // not s + factor x, which is a sum and a constant
    } else {
      s = Op::Isa::dot(s, bits<typename Op::Items>(factor), bits<typename Op::Items>(x));
    }
  };
  (step(sum[i]), ...);
}

/// Makes `steps` steps and adds up what they did to *sink. Returns the floating-point operations.
template <class Op>
double peak(int64_t steps, float* sink) {
  using V = F<Op::kLanes>;
  V sum[kPeakSums];
  for (int i = 0; i < kPeakSums; ++i) sum[i] = V{} + *sink + static_cast<float>(i);
  const V factor = V{} + *sink * 0.5F, x = V{} + *sink;
  for (int64_t s = 0; s < steps; ++s) {
    peak_step<Op>(sum, factor, x, std::make_integer_sequence<int, kPeakSums>{});
  }
  for (const auto& s : sum) *sink += s[0];
  return static_cast<double>(steps) * kPeakSums * Op::kLanes * Op::kDepth * 2;
}

}  // namespace
}  // namespace retnet::kernels::cpu
