// SPDX-License-Identifier: Apache-2.0
#include "cpu/instance.h"
#include "cpu/instruction_sets.h"

namespace retnet::cpu {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8;
  static constexpr int kTileRows = 6;  // 12 sums, 2 vectors, 1 broadcast of 16 registers
};

bool is_supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

}  // namespace

extern const InstructionSet kAvx2 = instruction_set<Avx2>("avx2", is_supported);

}  // namespace retnet::cpu
