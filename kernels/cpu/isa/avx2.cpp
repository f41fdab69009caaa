// SPDX-License-Identifier: Apache-2.0
#include <cpuid.h>
#include <immintrin.h>

#include "kernels/cpu/isa/instance.h"
#include "kernels/cpu/isa/registry.h"

namespace retnet::kernels::cpu {
namespace {

template <>
RETNET_INLINE F<8> widen<8>(H<8> x, Float16) {
  return _mm256_cvtph_ps(bits<__m128i>(x));
}

template <>
RETNET_INLINE H<8> narrow<8>(F<8> x, Float16) {
  return bits<H<8>>(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}

struct Avx2 {
  static constexpr int kLanes = 8;
  static constexpr int kTileRows = 6;  // 12 sums, 2 vectors, 1 broadcast of 16 registers
};

bool is_supported() {
  unsigned a = 0, b = 0, c = 0, d = 0;  // not every clang knows f16c by name
  const bool has_f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  return has_f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

}  // namespace

extern const InstructionSet kAvx2 = make_instruction_set<Avx2>("avx2", is_supported);

}  // namespace retnet::kernels::cpu
