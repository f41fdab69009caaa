// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/core/ScalarType.h>

#include "kernels/cpu/retention/params.h"

namespace retnet::ops::cpu {

/// The best instruction set that this library and this machine have, or the one that the
/// environment variable RETNET_CPU names: "avx512_bf16", "avx512", "avx2", "portable", "emulated"
/// (the arithmetic of avx512_bf16 on any machine, slowly). Read at each call. Raises where the
/// machine cannot run it.
const retnet::kernels::cpu::InstructionSet& instruction_set();

/// Its kernels for float32, bfloat16 or float16.
const retnet::kernels::cpu::Kernels& kernels_of(const retnet::kernels::cpu::InstructionSet& set,
                                                at::ScalarType dtype);

}  // namespace retnet::ops::cpu
