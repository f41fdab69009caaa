// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "kernels/cpu/simd/vector.h"

namespace retnet::kernels::cpu {
namespace {

/// e^x to 2 units in the last place, as 2^n times a polynomial in r, |r| <= ln 2 / 2.
///   - Below -87 the result is that at -87. From 87 to 88 it is that at 87.
///   - Above 88 it is infinite.
///   - NaN stays NaN.
template <int kLanes>
RETNET_INLINE F<kLanes> exponential(F<kLanes> x) {
  using V = F<kLanes>;
  const V high = V{} + 87.0F, low = V{} - 87.0F;
  V y = x > high ? high : x;
  y = y < low ? low : y;
  const float magic = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const V shifted = y * 1.44269504F + magic, n = shifted - magic;
  const V r = (y - n * 0.693359375F) + n * 2.12194440e-4F;  // minus n ln 2, in two parts
  V e = r * 1.9875691500e-4F + 1.3981999507e-3F;
  e = e * r + 8.3334519073e-3F;
  e = e * r + 4.1665795894e-2F;
  e = e * r + 1.6666665459e-1F;
  e = e * r + 5.0000001201e-1F;
  e = e * (r * r) + r + 1.0F;
  const V scaled = bits<V>(bits<U<kLanes>>(e) + (bits<U<kLanes>>(shifted) << 23));
  const V result = x > 88.0F ? V{} + INFINITY : scaled;
  return x == x ? result : x;
}

template <int kLanes>
RETNET_INLINE F<kLanes> sigmoid(F<kLanes> x) {
  return 1.0F / (exponential<kLanes>(-x) + 1.0F);
}

}  // namespace
}  // namespace retnet::kernels::cpu
