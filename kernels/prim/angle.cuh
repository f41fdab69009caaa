// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/prim/prim.cuh"

namespace retnet::kernels::prim {

// cos and sin of an angle of any size below 2^53 radians, in float64, rounded to fp32. CUDA's own
// sincos keeps a table walk in local memory for large angles; here 2 pi in two parts takes its place.
RETNET_DEVICE void cos_sin(double angle, float& cos, float& sin) {
  constexpr double kTurn = 6.283185307179586, kTurnRest = 2.4492935982947064e-16;  // 2 pi
  constexpr double kPerTurn = 0.15915494309189535, kPerHalfTurn = 0.3183098861837907;
  const double turns = nearest(angle * kPerTurn);
  // The first product is exact inside the fma, and so is the difference but for the last bit.
  const double rest = fma(-turns, kTurnRest, fma(-turns, kTurn, angle));
  double s, c;
  sincospi(rest * kPerHalfTurn, s, c);
  sin = static_cast<float>(s), cos = static_cast<float>(c);
}

}  // namespace retnet::kernels::prim
