// SPDX-License-Identifier: Apache-2.0
//
// Conversions between 16-bit floats and float. They round to nearest, ties to even; NaN stays NaN.
// An instruction set that converts in one instruction specialises `widen` and `narrow`.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cpu/scalar.h"
#include "kernels/cpu/simd/vector.h"

namespace retnet::kernels::cpu {
namespace {

template <int N>
RETNET_INLINE F<N> widen(H<N> x, BFloat16) {
  return bits<F<N>>(__builtin_convertvector(x, U<N>) << 16);
}

template <int N>
RETNET_INLINE F<N> widen(H<N> x, Float16) {
  const U<N> h = __builtin_convertvector(x, U<N>);
  const U<N> magnitude = (h & 0x7fffu) << 13, exponent = h & 0x7c00u;
  // Exponents are biased by 15 in 16 bits and by 127 in 32. That of infinity and NaN is all ones.
  const U<N> normal = magnitude + ((127u - 15) << 23);
  const U<N> special = magnitude + ((255u - 31) << 23);
  // Below the smallest normal number a subtraction gives magnitude * 2^-24 exactly.
  const U<N> one = U<N>{} + ((127u - 14) << 23);
  const U<N> small = bits<U<N>>(bits<F<N>>(magnitude + one) - bits<F<N>>(one));
  const U<N> value = exponent == 0 ? small : exponent == 0x7c00u ? special : normal;
  return bits<F<N>>(value | (h & 0x8000u) << 16);
}

template <int N>
RETNET_INLINE H<N> narrow(F<N> x, BFloat16) {
  const U<N> u = bits<U<N>>(x);
  const U<N> rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  const U<N> nan = u >> 16 | 0x40u;
  return __builtin_convertvector((u & 0x7fffffffu) > 0x7f800000u ? nan : rounded, H<N>);
}

template <int N>
RETNET_INLINE H<N> narrow(F<N> x, Float16) {
  const U<N> u = bits<U<N>>(x), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
  const U<N> normal = (a - ((127u - 15) << 23) + 0xfffu + (a >> 13 & 1u)) >> 13;
  // Below the smallest normal number, adding 1/2 leaves the multiple of 2^-24 in the last bits.
  const U<N> half = U<N>{} + (126u << 23);
  const U<N> small = bits<U<N>>(bits<F<N>>(a) + bits<F<N>>(half)) - half;
  const U<N> infinity = U<N>{} + 0x7c00u, nan = U<N>{} + 0x7e00u;
  const U<N> large = a > 0x7f800000u ? nan : infinity;
  const U<N> value = a < (127u - 14) << 23 ? small : a >= (127u + 16) << 23 ? large : normal;
  return __builtin_convertvector(value | sign, H<N>);
}

// Elements of a tensor, loaded as floats and stored rounded. `first` means the first n < kLanes.
// -------------------------------------------------------------------------------------------------

template <int kLanes, class Scalar>
RETNET_INLINE F<kLanes> load_as_float(const Scalar* p) {
  if constexpr (std::is_same_v<Scalar, float>) {
    return load<F<kLanes>>(p);
  } else {
    return widen<kLanes>(load<H<kLanes>>(p), Scalar{});
  }
}
template <int kLanes, class Scalar>
RETNET_INLINE F<kLanes> load_first_as_float(const Scalar* p, int64_t n) {
  Scalar items[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) items[i] = p[i];
  return load_as_float<kLanes>(items);
}
template <int kLanes, class Scalar>
RETNET_INLINE void store_rounded(Scalar* p, const F<kLanes>& x) {
  if constexpr (std::is_same_v<Scalar, float>) {
    store(p, x);
  } else {
    store(p, narrow<kLanes>(x, Scalar{}));
  }
}
template <int kLanes, class Scalar>
RETNET_INLINE void store_first_rounded(Scalar* p, const F<kLanes>& x, int64_t n) {
  Scalar items[kLanes];
  store_rounded<kLanes>(items, x);
  for (int64_t i = 0; i < n; ++i) p[i] = items[i];
}

}  // namespace
}  // namespace retnet::kernels::cpu
