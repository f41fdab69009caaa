// SPDX-License-Identifier: Apache-2.0
//
// Vectors of kLanes floats in the compiler's own vector types (GCC 12, clang 15): one source for
// every instruction set, chosen by the flags of the translation unit. a * b + c becomes one fused
// operation where there is one (-ffp-contract=fast). Everything here has internal linkage, so that
// the linker cannot replace a function by its twin from a unit of another instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernels/cpu/scalar.h"

#define RETNET_INLINE inline __attribute__((always_inline))
#define RETNET_NOINLINE __attribute__((noinline))

namespace retnet::kernels::cpu {
namespace {

template <int kLanes>
struct Vectors {
  typedef float F __attribute__((vector_size(4 * kLanes)));     // NOLINT(modernize-use-using)
  typedef uint32_t U __attribute__((vector_size(4 * kLanes)));  // NOLINT
  typedef uint16_t H __attribute__((vector_size(2 * kLanes)));  // NOLINT: 16-bit floats' bits
  typedef double D __attribute__((vector_size(8 * kLanes)));    // NOLINT
  typedef uint64_t L __attribute__((vector_size(8 * kLanes)));  // NOLINT: doubles' bits
};
template <int kLanes>
using F = typename Vectors<kLanes>::F;
template <int kLanes>
using U = typename Vectors<kLanes>::U;
template <int kLanes>
using H = typename Vectors<kLanes>::H;
template <int kLanes>
using D = typename Vectors<kLanes>::D;
template <int kLanes>
using L = typename Vectors<kLanes>::L;

/// Unaligned.
template <class V>
RETNET_INLINE V load(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class V>
RETNET_INLINE void store(void* p, const V& v) {
  __builtin_memcpy(p, &v, sizeof v);
}

template <class To, class From>
RETNET_INLINE To bits(const From& v) {
  return __builtin_bit_cast(To, v);
}

// 16-bit floats <-> float. Rounding is to nearest, ties to even; NaN stays NaN. An instruction set
// that converts in one instruction specialises these.
// -------------------------------------------------------------------------------------------------

template <int N>
RETNET_INLINE F<N> widen(H<N> x, BFloat16) {
  return bits<F<N>>(__builtin_convertvector(x, U<N>) << 16);
}

template <int N>
RETNET_INLINE F<N> widen(H<N> x, Float16) {
  const U<N> h = __builtin_convertvector(x, U<N>);
  const U<N> magnitude = (h & 0x7fffu) << 13, exponent = h & 0x7c00u;
  // Exponents are biased by 15 in 16 bits, by 127 in 32; that of infinity and NaN is all ones.
  const U<N> normal = magnitude + ((127u - 15) << 23);
  const U<N> special = magnitude + ((255u - 31) << 23);
  // Below the smallest normal: magnitude * 2^-24, exactly, by a subtraction.
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
  // Below the smallest normal: adding 1/2 leaves the multiple of 2^-24 in the last bits.
  const U<N> half = U<N>{} + (126u << 23);
  const U<N> small = bits<U<N>>(bits<F<N>>(a) + bits<F<N>>(half)) - half;
  const U<N> infinity = U<N>{} + 0x7c00u, nan = U<N>{} + 0x7e00u;
  const U<N> large = a > 0x7f800000u ? nan : infinity;
  const U<N> value = a < (127u - 14) << 23 ? small : a >= (127u + 16) << 23 ? large : normal;
  return __builtin_convertvector(value | sign, H<N>);
}

/// kLanes elements of a tensor as floats, and floats rounded to elements; `_first`: n < kLanes.
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

// Transposition
// -------------------------------------------------------------------------------------------------

/// Lane l of the result: a[l], or b[l - kStep] where l has the bit kStep.
template <int kStep, class V, int... l>
RETNET_INLINE V lower_halves(const V& a, const V& b, std::integer_sequence<int, l...>) {
  return __builtin_shufflevector(a, b,
                                 ((l & kStep) ? static_cast<int>(sizeof...(l)) + l - kStep : l)...);
}
/// Lane l of the result: a[l + kStep], or b[l] where l has the bit kStep.
template <int kStep, class V, int... l>
RETNET_INLINE V upper_halves(const V& a, const V& b, std::integer_sequence<int, l...>) {
  return __builtin_shufflevector(a, b,
                                 ((l & kStep) ? static_cast<int>(sizeof...(l)) + l : l + kStep)...);
}

/// Swaps the off-diagonal blocks of size kStep of a square, then of half that size, to the end.
template <int kStep, class V, int kLanes>
RETNET_INLINE void transpose_square(V (&r)[kLanes]) {
  using Lanes = std::make_integer_sequence<int, kLanes>;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    const V low = lower_halves<kStep>(r[i], r[i + kStep], Lanes{});
    r[i + kStep] = upper_halves<kStep>(r[i], r[i + kStep], Lanes{});
    r[i] = low;
  }
  if constexpr (kStep > 1) transpose_square<kStep / 2>(r);
}

/// to[c][r] = from[r][c] of 32-bit items, strides in items; rows and cols multiples of kLanes.
template <int kLanes, class Item>
RETNET_NOINLINE void transpose(const Item* from, int64_t from_stride, int64_t rows, int64_t cols,
                               Item* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    for (int64_t c = 0; c < cols; c += kLanes) {
      F<kLanes> square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        square[i] = load<F<kLanes>>(from + (r + i) * from_stride + c);
      }
      transpose_square<kLanes / 2>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + (c + i) * to_stride + r, square[i]);
    }
  }
}

}  // namespace
}  // namespace retnet::kernels::cpu
