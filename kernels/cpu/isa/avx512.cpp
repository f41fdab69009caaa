// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/isa/instance.h"
#include "kernels/cpu/isa/registry.h"
#include "kernels/cpu/simd/avx512_float16.h"

namespace retnet::kernels::cpu {
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

extern const InstructionSet kAvx512 = make_instruction_set<Avx512>("avx512", is_supported);

}  // namespace retnet::kernels::cpu
