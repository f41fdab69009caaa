// SPDX-License-Identifier: Apache-2.0
//
// Conversions of 16-bit floats by AVX-512. They use the masked intrinsics, because GCC 12 warns of
// the others.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/simd/float16.h"

namespace retnet::kernels::cpu {
namespace {

constexpr __mmask16 kAllLanes = 0xffff;

template <>
RETNET_INLINE F<16> widen<16>(H<16> x, BFloat16) {
  return bits<F<16>>(bits<U<16>>(_mm512_maskz_cvtepu16_epi32(kAllLanes, bits<__m256i>(x))) << 16);
}

template <>
RETNET_INLINE F<16> widen<16>(H<16> x, Float16) {
  return _mm512_maskz_cvtph_ps(kAllLanes, bits<__m256i>(x));
}

template <>
RETNET_INLINE H<16> narrow<16>(F<16> x, Float16) {
  return bits<H<16>>(_mm512_maskz_cvtps_ph(kAllLanes, x, _MM_FROUND_TO_NEAREST_INT));
}

}  // namespace
}  // namespace retnet::kernels::cpu
