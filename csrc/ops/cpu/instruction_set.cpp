// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/instruction_set.h"

#include <c10/util/Exception.h>
#include <c10/util/env.h>

#include <algorithm>
#include <string>

#include "kernels/cpu/isa/registry.h"

namespace retnet::ops::cpu {
namespace {

const retnet::kernels::cpu::InstructionSet& best_instruction_set() {
  static const auto& set = *[] {
    const auto& sets = retnet::kernels::cpu::instruction_sets();
    return *std::find_if(sets.begin(), sets.end(), [](auto* s) { return s->is_supported(); });
  }();
  return set;
}

}  // namespace

const retnet::kernels::cpu::InstructionSet& instruction_set() {
  const auto requested = c10::utils::get_env("RETNET_CPU");
  if (!requested || requested->empty()) return best_instruction_set();
  std::string names;
  for (const auto* set : retnet::kernels::cpu::instruction_sets()) {
    if (!set->is_supported()) continue;
    if (*requested == set->name) return *set;
    names += std::string(names.empty() ? "" : ", ") + set->name;
  }
  TORCH_CHECK_VALUE(false, "RETNET_CPU must be one of ", names, " on this machine, got ",
                    *requested);
  return best_instruction_set();  // not reached
}

const retnet::kernels::cpu::KernelTable& kernels_for(
    const retnet::kernels::cpu::InstructionSet& set, at::ScalarType dtype) {
  return dtype == at::kFloat ? set.float32 : dtype == at::kHalf ? set.float16 : set.bfloat16;
}

}  // namespace retnet::ops::cpu
