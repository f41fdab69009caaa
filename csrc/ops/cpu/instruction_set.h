// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/ScalarType.h>

#include "kernels/cpu/kernel_table.h"

namespace retnet::ops::cpu {

/// Returns the best instruction set that this library and this machine have, or the one that the
/// environment variable RETNET_CPU names: "avx512_bf16", "avx512", "avx2", "portable" or "emulated"
/// (the arithmetic of avx512_bf16 on any machine, slowly). The variable is read at each call of an
/// op. Raises if the machine does not support the named instruction set.
const retnet::kernels::cpu::InstructionSet& instruction_set();

/// Returns the kernels of an instruction set for float32, bfloat16 or float16.
const retnet::kernels::cpu::KernelTable& kernels_for(
    const retnet::kernels::cpu::InstructionSet& set, at::ScalarType dtype);

}  // namespace retnet::ops::cpu
