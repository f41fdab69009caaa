// SPDX-License-Identifier: Apache-2.0
//
// The kernels of one instruction set, for the translation unit that is compiled for it.
#pragma once

#include "cpu/retention_readout.h"
#include "cpu/retention_update.h"

namespace retnet::cpu {
namespace {

template <class Op, class Scalar>
constexpr RetentionKernels retention_kernels() {
  return {readout_scratch<Op>, readout<Op, Scalar>, update_scratch<Op>, update<Op, Scalar>};
}

/// Bfloat16Op multiplies bfloat16's factors; those of the other dtypes are floats.
template <class Isa, class Bfloat16Op = FloatOperand<Isa>>
constexpr InstructionSet instruction_set(const char* name, bool (*is_supported)()) {
  return {name, is_supported, retention_kernels<FloatOperand<Isa>, float>(),
          retention_kernels<Bfloat16Op, BFloat16>(),
          retention_kernels<FloatOperand<Isa>, Float16>()};
}

}  // namespace
}  // namespace retnet::cpu
