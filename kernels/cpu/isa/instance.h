// SPDX-License-Identifier: Apache-2.0
//
// The kernels of one instruction set, for the translation unit that is compiled for it.
#pragma once

#include "kernels/cpu/cross_entropy/kernel.h"
#include "kernels/cpu/gemm/peak.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/linear/kernel.h"
#include "kernels/cpu/norm/kernel.h"
#include "kernels/cpu/retention/backward.h"
#include "kernels/cpu/retention/decode_step.h"
#include "kernels/cpu/retention/forward.h"
#include "kernels/cpu/rotary/kernel.h"
#include "kernels/cpu/simd/row.h"

namespace retnet::kernels::cpu {
namespace {

template <class Operand, class Scalar>
constexpr KernelTable make_kernel_table() {
  return {retention_forward_workspace_bytes<Operand>,
          retention_forward<Operand, Scalar>,
          retention_backward_workspace_bytes<Operand>,
          retention_backward<Operand, Scalar>,
          gated_group_norm<Operand::kLanes, Scalar>,
          gated_group_norm_backward<Operand::kLanes, Scalar>,
          rotary<Operand::kLanes, Scalar>,
          cross_entropy<Operand::kLanes, Scalar>,
          to_floats<Operand::kLanes, Scalar>,
          from_floats<Operand::kLanes, Scalar>};
}

/// The products of bfloat16 tensors multiply BFloat16Operand; those of the other dtypes multiply
/// floats.
template <class Isa, class BFloat16Operand = FloatOperand<Isa>>
constexpr InstructionSet make_instruction_set(const char* name, bool (*is_supported)()) {
  return {name,
          is_supported,
          make_kernel_table<FloatOperand<Isa>, float>(),
          make_kernel_table<BFloat16Operand, BFloat16>(),
          make_kernel_table<FloatOperand<Isa>, Float16>(),
          cos_sin<Isa::kLanes>,
          decode_step<Isa::kLanes>,
          pack_linear_token<BFloat16Operand>,
          linear<BFloat16Operand>,
          peak<FloatOperand<Isa>>,
          peak<BFloat16Operand>};
}

}  // namespace
}  // namespace retnet::kernels::cpu
