// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/instruction_set.h"

#include <c10/util/Exception.h>
#include <c10/util/env.h>

#include <algorithm>
#include <string>

#include "kernels/cpu/isa/registry.h"

namespace retnet::ops::cpu {
namespace {

const retnet::kernels::cpu::InstructionSet& best() {
  static const auto& set = *[] {
    const auto& sets = retnet::kernels::cpu::instruction_sets();
    return *std::find_if(sets.begin(), sets.end(), [](auto* s) { return s->is_supported(); });
  }();
  return set;
}

}  // namespace

const retnet::kernels::cpu::InstructionSet& instruction_set() {
  const auto asked = c10::utils::get_env("RETNET_CPU");
  if (!asked || asked->empty()) return best();
  std::string names;
  for (const auto* set : retnet::kernels::cpu::instruction_sets()) {
    if (!set->is_supported()) continue;
    if (*asked == set->name) return *set;
    names += std::string(names.empty() ? "" : ", ") + set->name;
  }
  TORCH_CHECK_VALUE(false, "RETNET_CPU must be one of ", names, " on this machine, got ", *asked);
  return best();  // not reached
}

const retnet::kernels::cpu::Kernels& kernels_of(const retnet::kernels::cpu::InstructionSet& set,
                                                at::ScalarType dtype) {
  return dtype == at::kFloat ? set.float32 : dtype == at::kHalf ? set.float16 : set.bfloat16;
}

}  // namespace retnet::ops::cpu
