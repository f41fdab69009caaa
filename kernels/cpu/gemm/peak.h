// SPDX-License-Identifier: Apache-2.0
//
// Multiply-adds between registers are the most that an instruction set can do. Benchmarks report
// the speed of kernels as a share of their rate.
#pragma once

#include "kernels/cpu/gemm/operand.h"

namespace retnet::kernels::cpu {
namespace {

/// The number of sums. They are so many that none waits for its previous multiply-add, and so few
/// that the registers of every instruction set hold them.
constexpr int kPeakSums = 12;

template <class Operand, int... i>
RETNET_INLINE void multiply_add_sums(F<Operand::kLanes> (&sum)[kPeakSums],
                                     const F<Operand::kLanes>& factor, const F<Operand::kLanes>& x,
                                     std::integer_sequence<int, i...>) {
  const auto multiply_add = [&](F<Operand::kLanes>& s) {
    if constexpr (Operand::kItemDepth == 1) {
      s = s * factor + x;  // in s + factor x the compiler would compute the product once
    } else {
      using Items = typename Operand::Items;
      s = Operand::Isa::dot(s, bits<Items>(factor), bits<Items>(x));
    }
  };
  (multiply_add(sum[i]), ...);
}

/// Multiplies and adds `repetitions` times in each sum, and adds the sums to *sink. Returns the
/// number of floating-point operations.
template <class Operand>
double peak(int64_t repetitions, float* sink) {
  using V = F<Operand::kLanes>;
  V sum[kPeakSums];
  for (int i = 0; i < kPeakSums; ++i) sum[i] = V{} + *sink + static_cast<float>(i);
  const V factor = V{} + *sink * 0.5F, x = V{} + *sink;
  for (int64_t n = 0; n < repetitions; ++n) {
    multiply_add_sums<Operand>(sum, factor, x, std::make_integer_sequence<int, kPeakSums>{});
  }
  for (const auto& s : sum) *sink += s[0];
  return static_cast<double>(repetitions) * kPeakSums * Operand::kLanes * Operand::kItemDepth * 2;
}

}  // namespace
}  // namespace retnet::kernels::cpu
