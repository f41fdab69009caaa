// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/retention.h"

namespace retnet::ops::cpu {

/// The best instruction set that this library and this machine have, or the one that the
/// environment variable RETNET_CPU names: "avx512_bf16", "avx512", "avx2", "portable", "emulated"
/// (the arithmetic of avx512_bf16 on any machine, slowly). Read at each call. Raises where the
/// machine cannot run it.
const retnet::cpu::InstructionSet& instruction_set();

}  // namespace retnet::ops::cpu
