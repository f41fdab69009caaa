// SPDX-License-Identifier: Apache-2.0
//
// Neighbours of bfloat16 are taken in pairs, as 32-bit lanes. Where the instruction set multiplies
// pairs, the tokens are pairs too. Elsewhere a shift makes a float of the first and a mask one of the
// second, and the tokens stand ready as floats in that order: a vector of first ones, then one of
// second ones.
#pragma once

#include <algorithm>

#include "kernels/cpu/gemm/operand.h"
#include "kernels/cpu/linear/params.h"

namespace retnet::kernels::cpu {
namespace {

/// kLanes pairs; beyond n < 2 kLanes elements zeros.
template <int kLanes>
RETNET_INLINE U<kLanes> first_pairs(const BFloat16* p, int64_t n) {
  BFloat16 items[2 * kLanes] = {};
  for (int64_t i = 0; i < n; ++i) items[i] = p[i];
  return load<U<kLanes>>(items);
}
template <int kLanes>
RETNET_INLINE F<kLanes> first_of(const U<kLanes>& pairs) {
  return bits<F<kLanes>>(pairs << 16);
}
template <int kLanes>
RETNET_INLINE F<kLanes> second_of(const U<kLanes>& pairs) {
  return bits<F<kLanes>>(pairs & 0xffff0000u);
}

template <class Op>
void linear_token(const LinearTokenParams& p) {
  constexpr int kLanes = Op::kLanes;
  for (int64_t c = 0; c < p.channels; c += 2 * kLanes) {
    const int64_t n = p.channels - c;
    const auto pairs = n < 2 * kLanes ? first_pairs<kLanes>(p.x + c, n) : load<U<kLanes>>(p.x + c);
    if constexpr (Op::kDepth == 2) {
      store(p.to + c / 2, pairs);
    } else {
      store(p.to + c, first_of<kLanes>(pairs));
      store(p.to + c + kLanes, second_of<kLanes>(pairs));
    }
  }
}

/// sum + the products of kLanes pairs of a weight's row and of a token at channel c.
template <class Op>
RETNET_INLINE F<Op::kLanes> multiply_pairs(const U<Op::kLanes>& weight, const float* token,
                                           int64_t c, F<Op::kLanes> sum) {
  constexpr int kLanes = Op::kLanes;
  if constexpr (Op::kDepth == 2) {
    return Op::Isa::dot(sum, weight, load<U<kLanes>>(token + c / 2));
  } else {
    sum = first_of<kLanes>(weight) * load<F<kLanes>>(token + c) + sum;
    return second_of<kLanes>(weight) * load<F<kLanes>>(token + c + kLanes) + sum;
  }
}

/// kOut rows of the weight from `first` on, against kTokens tokens.
template <class Op, int kOut, int kTokens>
RETNET_INLINE void linear_rows(const LinearParams& p, int64_t first) {
  constexpr int kLanes = Op::kLanes;
  const int64_t stride = linear_token_size(p.in);
  const BFloat16* weight = p.weight + first * p.weight_stride;
  F<kLanes> sum[kOut][kTokens] = {};
  const auto step = [&](int o, int64_t c, const U<kLanes>& w) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      sum[o][t] = multiply_pairs<Op>(w, p.x + t * stride, c, sum[o][t]);
    }
  };
  int64_t c = 0;
  for (; c + 2 * kLanes <= p.in; c += 2 * kLanes) {
#pragma GCC unroll 8
    for (int o = 0; o < kOut; ++o) {
      const BFloat16* row = weight + o * p.weight_stride + c;
      // The rows after these, into the L2 cache. Past the last this is beyond the weight: a prefetch
      // does not fault.
      if (c % 32 == 0) {
        const auto ahead = reinterpret_cast<uintptr_t>(row) + kOut * p.weight_stride * sizeof *row;
        __builtin_prefetch(reinterpret_cast<const void*>(ahead), 0, 2);
      }
      step(o, c, load<U<kLanes>>(row));
    }
  }
  if (c < p.in) {
#pragma GCC unroll 8
    for (int o = 0; o < kOut; ++o) {
      step(o, c, first_pairs<kLanes>(weight + o * p.weight_stride + c, p.in - c));
    }
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int o = 0; o < kOut; ++o) {
      float y = 0;
      for (int l = 0; l < kLanes; ++l) y += sum[o][t][l];
      if (p.bias) y += load_first_as_float<4>(p.bias + first + o, 1)[0];
      store_first_rounded<4>(p.y + t * p.y_stride + first + o, F<4>{y}, 1);
    }
  }
}

/// As many rows of the weight at a time as leave registers for all tokens' sums: the more streams,
/// the more of the memory's bandwidth.
template <class Op, int kTokens>
void linear_tokens(const LinearParams& p) {
  constexpr int kSums = Op::kLanes == 16 ? 24 : 8;  // of 32 or 16 registers
  constexpr int kOut = std::min(8, kSums / kTokens);
  static_assert(kLinearPart % kOut == 0);
  int64_t o = 0;
  for (; o + kOut <= p.out; o += kOut) linear_rows<Op, kOut, kTokens>(p, o);
  for (; o < p.out; ++o) linear_rows<Op, 1, kTokens>(p, o);
}

template <class Op>
void linear(const LinearParams& p) {
  switch (p.tokens) {
    case 1:
      return linear_tokens<Op, 1>(p);
    case 2:
      return linear_tokens<Op, 2>(p);
    case 3:
      return linear_tokens<Op, 3>(p);
    default:
      return linear_tokens<Op, 4>(p);
  }
}

}  // namespace
}  // namespace retnet::kernels::cpu
