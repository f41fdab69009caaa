// SPDX-License-Identifier: Apache-2.0
//
// The kernels of one instruction set, for the translation unit that is compiled for it.
#pragma once

#include "cpu/cross_entropy_kernels.h"
#include "cpu/linear_kernels.h"
#include "cpu/norm_kernels.h"
#include "cpu/peak_kernels.h"
#include "cpu/retention_readout.h"
#include "cpu/retention_update.h"
#include "cpu/rotary_kernels.h"
#include "cpu/row.h"
#include "cpu/step_kernels.h"

namespace retnet::cpu {
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
}  // namespace retnet::cpu
