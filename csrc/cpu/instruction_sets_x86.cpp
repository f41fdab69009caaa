// SPDX-License-Identifier: Apache-2.0
#include <cpuid.h>

#include "cpu/instruction_sets.h"

namespace retnet::cpu {

const std::vector<const InstructionSet*>& instruction_sets() {
  static const std::vector<const InstructionSet*> sets{&kAvx512Bf16, &kAvx512, &kAvx2, &kPortable,
                                                       &kEmulated};
  return sets;
}

int amd_family_with_avx512() {
  static const int family = [] {
    unsigned int a = 0, b = 0, c = 0, d = 0;
    const bool it_is = __builtin_cpu_is("amd") && __builtin_cpu_supports("avx512f");
    return it_is && __get_cpuid(1, &a, &b, &c, &d) != 0
               ? static_cast<int>((a >> 8 & 15) + (a >> 20 & 255))
               : 0;
  }();
  return family;
}

}  // namespace retnet::cpu
