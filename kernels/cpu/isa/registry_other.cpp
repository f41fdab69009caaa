// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/isa/registry.h"

namespace retnet::kernels::cpu {

const std::vector<const InstructionSet*>& instruction_sets() {
  static const std::vector<const InstructionSet*> sets{&kPortable, &kEmulated};
  return sets;
}

bool is_amd_with_avx512() { return false; }

}  // namespace retnet::kernels::cpu
