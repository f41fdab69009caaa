// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "kernels/cpu/retention/params.h"

namespace retnet::kernels::cpu {

/// Four lanes of whatever the compiler has: the baseline of x86-64 or of another architecture.
extern const InstructionSet kPortable;
/// The kernels of kAvx512Bf16, pairs of bfloat16 included, on plain arrays: tests run by it what
/// they cannot run on a machine without those instructions.
extern const InstructionSet kEmulated;
// x86-64 alone:
extern const InstructionSet kAvx2;        // with FMA
extern const InstructionSet kAvx512;      // F, BW, DQ, VL
extern const InstructionSet kAvx512Bf16;  // and BF16

/// Those compiled for this architecture, best first.
const std::vector<const InstructionSet*>& instruction_sets();

/// Whether this is a CPU of AMD with AVX-512, which MKL leaves unused there.
bool is_amd_with_avx512();

}  // namespace retnet::kernels::cpu
