// SPDX-License-Identifier: Apache-2.0
//
// Neighbouring bfloat16 values of the weight are taken in pairs, as 32-bit lanes.
//   - If the instruction set multiplies pairs, tokens are packed as pairs too.
//   - Otherwise a shift turns the first value of a pair into a float, and a mask turns the second.
//     Tokens are packed as floats in that order: a vector of first values, then one of second
//     values.
#pragma once

#include <algorithm>

#include "kernels/cpu/gemm/operand.h"
#include "kernels/cpu/linear/params.h"
#include "kernels/cpu/simd/float16.h"
#include "kernels/cpu/simd/vector.h"

namespace retnet::kernels::cpu {
namespace {

/// Loads kLanes pairs from the first n < 2 kLanes elements. Zeros follow them.
template <int kLanes>
RETNET_INLINE U<kLanes> load_first_pairs(const BFloat16* p, int64_t n) {
  BFloat16 items[2 * kLanes] = {};
  for (int64_t i = 0; i < n; ++i) items[i] = p[i];
  return load<U<kLanes>>(items);
}
template <int kLanes>
RETNET_INLINE F<kLanes> first_values(const U<kLanes>& pairs) {
  return bits<F<kLanes>>(pairs << 16);
}
template <int kLanes>
RETNET_INLINE F<kLanes> second_values(const U<kLanes>& pairs) {
  return bits<F<kLanes>>(pairs & 0xffff0000u);
}

template <class Operand>
void pack_linear_token(const LinearTokenParams& p) {
  constexpr int kLanes = Operand::kLanes;
  for (int64_t c = 0; c < p.in_features; c += 2 * kLanes) {
    const int64_t n = p.in_features - c;
    const auto pairs =
        n < 2 * kLanes ? load_first_pairs<kLanes>(p.x + c, n) : load<U<kLanes>>(p.x + c);
    if constexpr (Operand::kItemDepth == 2) {
      store(p.packed + c / 2, pairs);
    } else {
      store(p.packed + c, first_values<kLanes>(pairs));
      store(p.packed + c + kLanes, second_values<kLanes>(pairs));
    }
  }
}

/// Returns sum + the products of kLanes pairs of a row of the weight with those of a token at
/// channel c.
template <class Operand>
RETNET_INLINE F<Operand::kLanes> multiply_pairs(const U<Operand::kLanes>& weight,
                                                const float* token, int64_t c,
                                                F<Operand::kLanes> sum) {
  constexpr int kLanes = Operand::kLanes;
  if constexpr (Operand::kItemDepth == 2) {
    return Operand::Isa::dot(sum, weight, load<U<kLanes>>(token + c / 2));
  } else {
    sum = first_values<kLanes>(weight) * load<F<kLanes>>(token + c) + sum;
    return second_values<kLanes>(weight) * load<F<kLanes>>(token + c + kLanes) + sum;
  }
}

/// Multiplies kOut rows of the weight, from `first` on, with kTokens tokens.
template <class Operand, int kOut, int kTokens>
RETNET_INLINE void linear_rows(const LinearParams& p, int64_t first) {
  constexpr int kLanes = Operand::kLanes;
  const int64_t stride = linear_token_size(p.in_features);
  const BFloat16* weight = p.weight + first * p.weight_stride;
  F<kLanes> sum[kOut][kTokens] = {};
  const auto multiply_add = [&](int o, int64_t c, const U<kLanes>& w) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      sum[o][t] = multiply_pairs<Operand>(w, p.packed_x + t * stride, c, sum[o][t]);
    }
  };
  int64_t c = 0;
  for (; c + 2 * kLanes <= p.in_features; c += 2 * kLanes) {
#pragma GCC unroll 8
    for (int o = 0; o < kOut; ++o) {
      const BFloat16* row = weight + o * p.weight_stride + c;
      // Prefetch the rows after these into the L2 cache. Past the last row the address lies beyond
      // the weight, but a prefetch does not fault.
      if (c % 32 == 0) {
        const auto next = reinterpret_cast<uintptr_t>(row) + kOut * p.weight_stride * sizeof *row;
        __builtin_prefetch(reinterpret_cast<const void*>(next), 0, 2);
      }
      multiply_add(o, c, load<U<kLanes>>(row));
    }
  }
  if (c < p.in_features) {
#pragma GCC unroll 8
    for (int o = 0; o < kOut; ++o) {
      multiply_add(o, c,
                   load_first_pairs<kLanes>(weight + o * p.weight_stride + c, p.in_features - c));
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int o = 0; o < kOut; ++o) {
      float out = 0;
      for (int l = 0; l < kLanes; ++l) out += sum[o][t][l];
      if (p.bias) out += load_first_as_float<4>(p.bias + first + o, 1)[0];
      store_first_rounded<4>(p.out + t * p.out_stride + first + o, F<4>{out}, 1);
    }
  }
}

/// Takes as many rows of the weight at a time as registers can hold sums for, with all tokens. The
/// more rows are read side by side, the more of the memory bandwidth is used.
template <class Operand, int kTokens>
void linear_tokens(const LinearParams& p) {
  constexpr int kSums = Operand::kLanes == 16 ? 24 : 8;  // of 32 or 16 registers
  constexpr int kOut = std::min(8, kSums / kTokens);
  static_assert(kLinearRowMultiple % kOut == 0);
  int64_t o = 0;
  for (; o + kOut <= p.out_features; o += kOut) linear_rows<Operand, kOut, kTokens>(p, o);
  for (; o < p.out_features; ++o) linear_rows<Operand, 1, kTokens>(p, o);
}

template <class Operand>
void linear(const LinearParams& p) {
  switch (p.tokens) {
    case 1:
      return linear_tokens<Operand, 1>(p);
    case 2:
      return linear_tokens<Operand, 2>(p);
    case 3:
      return linear_tokens<Operand, 3>(p);
    default:
      return linear_tokens<Operand, 4>(p);
  }
}

}  // namespace
}  // namespace retnet::kernels::cpu
