// SPDX-License-Identifier: Apache-2.0
//
// The kernels of one instruction set, for the translation unit that is compiled for it.
#pragma once

#include "kernels/cpu/cross_entropy/kernel.h"
#include "kernels/cpu/gemm/peak.h"
#include "kernels/cpu/linear/kernel.h"
#include "kernels/cpu/norm/kernel.h"
#include "kernels/cpu/retention/backward.h"
#include "kernels/cpu/retention/decode_step.h"
#include "kernels/cpu/retention/forward.h"
#include "kernels/cpu/rotary/kernel.h"
#include "kernels/cpu/simd/row.h"

namespace retnet::kernels::cpu {
namespace {

template <class Op, class Scalar>
constexpr Kernels kernels() {
  return {readout_scratch<Op>,
          readout<Op, Scalar>,
          update_scratch<Op>,
          update<Op, Scalar>,
          gated_norm<Op::kLanes, Scalar>,
          gated_norm_grad<Op::kLanes, Scalar>,
          rotary<Op::kLanes, Scalar>,
          cross_entropy<Op::kLanes, Scalar>,
          to_floats<Op::kLanes, Scalar>,
          from_floats<Op::kLanes, Scalar>};
}

/// Bfloat16Op multiplies bfloat16's factors; those of the other dtypes are floats.
template <class Isa, class Bfloat16Op = FloatOperand<Isa>>
constexpr InstructionSet instruction_set(const char* name, bool (*is_supported)()) {
  return {name,
          is_supported,
          kernels<FloatOperand<Isa>, float>(),
          kernels<Bfloat16Op, BFloat16>(),
          kernels<FloatOperand<Isa>, Float16>(),
          cos_sin<Isa::kLanes>,
          step<Isa::kLanes>,
          linear_token<Bfloat16Op>,
          linear<Bfloat16Op>,
          peak<FloatOperand<Isa>>,
          peak<Bfloat16Op>};
}

}  // namespace
}  // namespace retnet::kernels::cpu
