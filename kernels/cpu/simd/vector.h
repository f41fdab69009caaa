// SPDX-License-Identifier: Apache-2.0
//
// Vectors of kLanes floats in the vector types of the compiler (GCC 12, clang 15). One source
// serves every instruction set: the flags of the translation unit choose it. a * b + c becomes one
// fused operation if the set has one (-ffp-contract=fast). Everything here has internal linkage.
// Otherwise the linker could replace a function by its twin from the unit of another instruction
// set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#define RETNET_INLINE inline __attribute__((always_inline))
#define RETNET_NOINLINE __attribute__((noinline))

namespace retnet::kernels::cpu {
namespace {

template <int kLanes>
struct Vectors {
  typedef float F __attribute__((vector_size(4 * kLanes)));     // NOLINT(modernize-use-using)
  typedef uint32_t U __attribute__((vector_size(4 * kLanes)));  // NOLINT
  typedef uint16_t H __attribute__((vector_size(2 * kLanes)));  // NOLINT: bits of 16-bit floats
  typedef double D __attribute__((vector_size(8 * kLanes)));    // NOLINT
  typedef uint64_t L __attribute__((vector_size(8 * kLanes)));  // NOLINT: bits of doubles
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

/// Loads and stores need no alignment.
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

// Transposition
// -------------------------------------------------------------------------------------------------

/// Lane l of the result is a[l], or b[l - kBlock] if l has the bit kBlock.
template <int kBlock, class V, int... l>
RETNET_INLINE V lower_halves(const V& a, const V& b, std::integer_sequence<int, l...>) {
  return __builtin_shufflevector(
      a, b, ((l & kBlock) ? static_cast<int>(sizeof...(l)) + l - kBlock : l)...);
}
/// Lane l of the result is a[l + kBlock], or b[l] if l has the bit kBlock.
template <int kBlock, class V, int... l>
RETNET_INLINE V upper_halves(const V& a, const V& b, std::integer_sequence<int, l...>) {
  return __builtin_shufflevector(
      a, b, ((l & kBlock) ? static_cast<int>(sizeof...(l)) + l : l + kBlock)...);
}

/// Swaps the off-diagonal blocks of size kBlock of a square, then those of half that size, down to
/// single lanes.
template <int kBlock, class V, int kLanes>
RETNET_INLINE void transpose_square(V (&r)[kLanes]) {
  using Lanes = std::make_integer_sequence<int, kLanes>;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & kBlock) continue;
    const V low = lower_halves<kBlock>(r[i], r[i + kBlock], Lanes{});
    r[i + kBlock] = upper_halves<kBlock>(r[i], r[i + kBlock], Lanes{});
    r[i] = low;
  }
  if constexpr (kBlock > 1) transpose_square<kBlock / 2>(r);
}

/// to[c][r] = from[r][c] of 32-bit items. Strides are in items; rows and columns are multiples of
/// kLanes.
template <int kLanes, class Item>
RETNET_NOINLINE void transpose(const Item* from, int64_t from_stride, int64_t rows, int64_t columns,
                               Item* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    for (int64_t c = 0; c < columns; c += kLanes) {
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
