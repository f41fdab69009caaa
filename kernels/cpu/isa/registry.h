// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "kernels/cpu/kernel_table.h"

namespace retnet::kernels::cpu {

/// Four lanes, in the baseline instructions of the compiler for x86-64 or for another architecture.
extern const InstructionSet kPortable;
/// The emulated instruction set: the kernels of kAvx512Bf16, which multiply pairs of bfloat16, on
/// plain arrays. Tests use it on machines without those instructions.
extern const InstructionSet kEmulated;
// On x86-64 only:
extern const InstructionSet kAvx2;        // with FMA
extern const InstructionSet kAvx512;      // with AVX-512 F, BW, DQ and VL
extern const InstructionSet kAvx512Bf16;  // with these and AVX-512 BF16

/// The instruction sets that are compiled for this architecture, best first.
const std::vector<const InstructionSet*>& instruction_sets();

/// Whether this is an AMD CPU with AVX-512. MKL does not use AVX-512 on AMD CPUs.
bool is_amd_with_avx512();

}  // namespace retnet::kernels::cpu
