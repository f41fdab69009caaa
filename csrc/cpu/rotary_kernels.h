// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "cpu/rotary.h"
#include "cpu/vector.h"

namespace retnet::cpu {
namespace {

/// Lanes of a then of b: every second, from `first` on.
template <int kFirst, class V, int... l>
RETNET_INLINE V every_second(const V& a, const V& b, std::integer_sequence<int, l...>) {
  return __builtin_shufflevector(a, b, (2 * l + kFirst)...);
}
/// Lanes of a and of b by turns: the first half of the result, or the second.
template <int kHalf, class V, int... l>
RETNET_INLINE V by_turns(const V& a, const V& b, std::integer_sequence<int, l...>) {
  constexpr int kLanes = sizeof...(l);
  return __builtin_shufflevector(a, b, (kHalf * kLanes / 2 + l / 2 + l % 2 * kLanes)...);
}

template <int kLanes, class Scalar>
void rotary(const RotaryParams& p) {
  using V = F<kLanes>;
  using Lanes = std::make_integer_sequence<int, kLanes>;
  const auto* x = static_cast<const Scalar*>(p.x);
  auto* out = static_cast<Scalar*>(p.out);
  const auto turn = [&](int64_t i, const V& a, const V& b, V& turned_a, V& turned_b) {
    const V cos = load<V>(p.cos + i), sin = load<V>(p.sin + i);
    turned_a = a * cos - b * sin;
    turned_b = a * sin + b * cos;
  };
  int64_t i = 0;
  for (; i + kLanes <= p.pairs; i += kLanes) {
    V a, b;
    if (p.interleaved) {
      const V first = load_as_float<kLanes>(x + 2 * i);
      const V second = load_as_float<kLanes>(x + 2 * i + kLanes);
      turn(i, every_second<0>(first, second, Lanes{}), every_second<1>(first, second, Lanes{}), a,
           b);
      store_rounded<kLanes>(out + 2 * i, by_turns<0>(a, b, Lanes{}));
      store_rounded<kLanes>(out + 2 * i + kLanes, by_turns<1>(a, b, Lanes{}));
    } else {
      turn(i, load_as_float<kLanes>(x + i), load_as_float<kLanes>(x + p.pairs + i), a, b);
      store_rounded<kLanes>(out + i, a);
      store_rounded<kLanes>(out + p.pairs + i, b);
    }
  }
  for (; i < p.pairs; ++i) {  // by vectors of one channel in use
    const int64_t first = p.interleaved ? 2 * i : i,
                  second = p.interleaved ? first + 1 : i + p.pairs;
    const V a = load_first_as_float<kLanes>(x + first, 1);
    const V b = load_first_as_float<kLanes>(x + second, 1);
    store_first_rounded<kLanes>(out + first, a * p.cos[i] - b * p.sin[i], 1);
    store_first_rounded<kLanes>(out + second, a * p.sin[i] + b * p.cos[i], 1);
  }
}

}  // namespace
}  // namespace retnet::cpu
