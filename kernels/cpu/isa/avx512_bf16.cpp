// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "kernels/cpu/isa/instance.h"
#include "kernels/cpu/isa/registry.h"
#include "kernels/cpu/simd/avx512_float16.h"

namespace retnet::kernels::cpu {
namespace {

/// Values below the smallest normal number become zero.
template <>
RETNET_INLINE H<16> narrow<16>(F<16> x, BFloat16) {
  return bits<H<16>>(_mm512_cvtneps_pbh(x));
}

struct Avx512Bf16 {
  static constexpr int kLanes = 16;
  static constexpr int kTileRows = 8;
  static RETNET_INLINE F<16> dot(F<16> sum, U<16> a, U<16> b) {
    return _mm512_dpbf16_ps(sum, bits<__m512bh>(a), bits<__m512bh>(b));
  }
  static RETNET_INLINE H<32> round(F<16> x, F<16> y) {
    return bits<H<32>>(_mm512_cvtne2ps_pbh(y, x));
  }
};

bool is_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512bf16");
}

}  // namespace

extern const InstructionSet kAvx512Bf16 =
    make_instruction_set<Avx512Bf16, BFloat16PairOperand<Avx512Bf16>>("avx512_bf16", is_supported);

}  // namespace retnet::kernels::cpu
