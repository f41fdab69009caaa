// SPDX-License-Identifier: Apache-2.0
//
// Neighbours of bfloat16 are taken in pairs, as 32-bit lanes: a shift makes a float of the first, a
// mask one of the second. The tokens stand ready in that order: a vector of first ones, then one of
// second ones.
#pragma once

#include "cpu/linear.h"
#include "cpu/vector.h"

namespace retnet::cpu {
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

template <int kLanes>
void linear_token(const LinearTokenParams& p) {
  for (int64_t c = 0; c < p.channels; c += 2 * kLanes) {
    const int64_t n = p.channels - c;
    const auto pairs = n < 2 * kLanes ? first_pairs<kLanes>(p.x + c, n) : load<U<kLanes>>(p.x + c);
    store(p.to + c, first_of<kLanes>(pairs));
    store(p.to + c + kLanes, second_of<kLanes>(pairs));
  }
}

/// kOut rows of the weight from `first` on, against kTokens tokens.
template <int kLanes, int kOut, int kTokens>
RETNET_INLINE void linear_rows(const LinearParams& p, int64_t first) {
  const int64_t stride = linear_token_size(p.in);
  const BFloat16* weight = p.weight + first * p.weight_stride;
  F<kLanes> sum[kOut][kTokens] = {};
  const auto step = [&](int o, int64_t c, const U<kLanes>& w) {
    const auto first = first_of<kLanes>(w), second = second_of<kLanes>(w);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const float* x = p.x + t * stride + c;
      sum[o][t] = first * load<F<kLanes>>(x) + sum[o][t];
      sum[o][t] = second * load<F<kLanes>>(x + kLanes) + sum[o][t];
    }
  };
  int64_t c = 0;
  for (; c + 2 * kLanes <= p.in; c += 2 * kLanes) {
#pragma GCC unroll 4
    for (int o = 0; o < kOut; ++o) {
      const BFloat16* row = weight + o * p.weight_stride + c;
      // Past the last row this is beyond the weight: a prefetch does not fault.
      if (c % 32 == 0) __builtin_prefetch(row + kOut * p.weight_stride);
      step(o, c, load<U<kLanes>>(row));
    }
  }
  if (c < p.in) {
#pragma GCC unroll 4
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

/// As many rows of the weight at a time as leave registers for all tokens' sums.
template <int kLanes, int kTokens>
void linear_tokens(const LinearParams& p) {
  constexpr int kOut = kTokens <= 2 ? 4 : 2;
  int64_t o = 0;
  for (; o + kOut <= p.out; o += kOut) linear_rows<kLanes, kOut, kTokens>(p, o);
  for (; o < p.out; ++o) linear_rows<kLanes, 1, kTokens>(p, o);
}

template <int kLanes>
void linear(const LinearParams& p) {
  switch (p.tokens) {
    case 1:
      return linear_tokens<kLanes, 1>(p);
    case 2:
      return linear_tokens<kLanes, 2>(p);
    case 3:
      return linear_tokens<kLanes, 3>(p);
    default:
      return linear_tokens<kLanes, 4>(p);
  }
}

}  // namespace
}  // namespace retnet::cpu
