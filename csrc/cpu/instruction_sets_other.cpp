// SPDX-License-Identifier: Apache-2.0
#include "cpu/instruction_sets.h"

namespace retnet::cpu {

const std::vector<const InstructionSet*>& instruction_sets() {
  static const std::vector<const InstructionSet*> sets{&kPortable, &kEmulated};
  return sets;
}

bool is_amd_with_avx512() { return false; }

}  // namespace retnet::cpu
