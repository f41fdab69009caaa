// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cpu/rotary/params.h"
#include "kernels/cpu/simd/float16.h"
#include "kernels/cpu/simd/vector.h"

namespace retnet::kernels::cpu {
namespace {

/// Returns every second lane of a followed by b, from lane kFirst on.
template <int kFirst, class V, int... l>
RETNET_INLINE V every_second(const V& a, const V& b, std::integer_sequence<int, l...>) {
  return __builtin_shufflevector(a, b, (2 * l + kFirst)...);
}
/// Returns the lanes of a and b in alternation, the first half of them or the second.
template <int kHalf, class V, int... l>
RETNET_INLINE V alternating(const V& a, const V& b, std::integer_sequence<int, l...>) {
  constexpr int kLanes = sizeof...(l);
  return __builtin_shufflevector(a, b, (kHalf * kLanes / 2 + l / 2 + l % 2 * kLanes)...);
}

/// The angle is n quarter turns and a remainder |r| <= pi / 4, whose cosine and sine are Taylor
/// polynomials with an error of 3e-9.
template <int kLanes>
void cos_sin(const CosSinParams& p) {
  constexpr int kCount = kLanes / 2;
  using V = D<kCount>;
  using Bits = L<kCount>;
  // pi / 2 in three parts. The first two have 22 bits, so their products with n < 2^31 are exact.
  constexpr double kPart1 = 0x1.921fbp+0, kPart2 = 0x1.5110bp-22, kPart3 = 0x1.18469898cc517p-44;
  constexpr double kMagic = 0x1.8p52;  // adding it rounds to an integer
  const auto cos_sin_of = [&](const F<kCount>& frequencies, F<kCount>& cos, F<kCount>& sin) {
    const V angle = __builtin_convertvector(frequencies, V) * p.position;
    const V shifted = angle * 0x1.45f306dc9c883p-1 + kMagic, n = shifted - kMagic;  // 2 / pi
    const V r = ((angle - n * kPart1) - n * kPart2) - n * kPart3, z = r * r;
    V s = z * (1.0 / 362880) - 1.0 / 5040;
    s = s * z + 1.0 / 120;
    s = s * z - 1.0 / 6;
    s = s * z * r + r;
    V c = z * (-1.0 / 3628800) + 1.0 / 40320;
    c = c * z - 1.0 / 720;
    c = c * z + 1.0 / 24;
    c = c * z - 0.5;
    c = c * z + 1.0;
    // Sine and cosine change places in the quarters 1 and 3 of 0 to 3. The cosine is negative in 1
    // and 2, the sine in 2 and 3.
    const auto quarter = bits<Bits>(shifted);
    const auto is_odd = (quarter & 1) != 0;
    const auto signed_as = [](const V& x, const Bits& n) {
      return __builtin_convertvector(bits<V>(bits<Bits>(x) ^ (n & 2) << 62), F<kCount>);
    };
    cos = signed_as(is_odd ? s : c, quarter + 1);
    sin = signed_as(is_odd ? c : s, quarter);
  };
  F<kCount> cos, sin;
  int64_t i = 0;
  for (; i + kCount <= p.pairs; i += kCount) {
    cos_sin_of(load<F<kCount>>(p.frequencies + i), cos, sin);
    store(p.cos + i, cos);
    store(p.sin + i, sin);
  }
  if (i < p.pairs) {
    cos_sin_of(load_first_as_float<kCount>(p.frequencies + i, p.pairs - i), cos, sin);
    store_first_rounded<kCount>(p.cos + i, cos, p.pairs - i);
    store_first_rounded<kCount>(p.sin + i, sin, p.pairs - i);
  }
}

template <int kLanes, class Scalar>
void rotary(const RotaryParams& p) {
  using V = F<kLanes>;
  using Lanes = std::make_integer_sequence<int, kLanes>;
  const auto* x = static_cast<const Scalar*>(p.x);
  auto* out = static_cast<Scalar*>(p.out);
  const auto rotate = [&](int64_t i, const V& a, const V& b, V& rotated_a, V& rotated_b) {
    const V cos = load<V>(p.cos + i), sin = load<V>(p.sin + i);
    rotated_a = a * cos - b * sin;
    rotated_b = a * sin + b * cos;
  };
  int64_t i = 0;
  for (; i + kLanes <= p.pairs; i += kLanes) {
    V a, b;
    if (p.interleaved) {
      const V first = load_as_float<kLanes>(x + 2 * i);
      const V second = load_as_float<kLanes>(x + 2 * i + kLanes);
      rotate(i, every_second<0>(first, second, Lanes{}), every_second<1>(first, second, Lanes{}), a,
             b);
      store_rounded<kLanes>(out + 2 * i, alternating<0>(a, b, Lanes{}));
      store_rounded<kLanes>(out + 2 * i + kLanes, alternating<1>(a, b, Lanes{}));
    } else {
      rotate(i, load_as_float<kLanes>(x + i), load_as_float<kLanes>(x + p.pairs + i), a, b);
      store_rounded<kLanes>(out + i, a);
      store_rounded<kLanes>(out + p.pairs + i, b);
    }
  }
  for (; i < p.pairs; ++i) {  // one lane of each vector is used
    const int64_t first = p.interleaved ? 2 * i : i,
                  second = p.interleaved ? first + 1 : i + p.pairs;
    const V a = load_first_as_float<kLanes>(x + first, 1);
    const V b = load_first_as_float<kLanes>(x + second, 1);
    store_first_rounded<kLanes>(out + first, a * p.cos[i] - b * p.sin[i], 1);
    store_first_rounded<kLanes>(out + second, a * p.sin[i] + b * p.cos[i], 1);
  }
}

}  // namespace
}  // namespace retnet::kernels::cpu
