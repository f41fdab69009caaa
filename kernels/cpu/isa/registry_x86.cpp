// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/isa/registry.h"

namespace retnet::kernels::cpu {

const std::vector<const InstructionSet*>& instruction_sets() {
  static const std::vector<const InstructionSet*> sets{&kAvx512Bf16, &kAvx512, &kAvx2, &kPortable,
                                                       &kEmulated};
  return sets;
}

bool is_amd_with_avx512() { return __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512f"); }

}  // namespace retnet::kernels::cpu
