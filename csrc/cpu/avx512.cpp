// SPDX-License-Identifier: Apache-2.0
#include "cpu/avx512_conversion.h"
#include "cpu/instance.h"
#include "cpu/instruction_sets.h"

namespace retnet::cpu {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16;
  static constexpr int kTileRows = 8;
};

bool is_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace

extern const InstructionSet kAvx512 = instruction_set<Avx512>("avx512", is_supported);

}  // namespace retnet::cpu
