// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/prim/prim.cuh"

namespace retnet::kernels::cuda::prim {

// Computes cos and sin of an angle below 2^53 radians, in float64 to 1e-10, and rounds them to float32. The
// functions of CUDA walk a table in local memory for large angles.
RETNET_DEVICE void cos_sin(double angle, float& cos, float& sin) {
  constexpr double kTwoOverPi = 0.63661977236758134308;
  constexpr double kHalfPi = 1.57079632679489655800;          // pi/2 rounded to float64,
  constexpr double kHalfPiRest = 6.12323399573676603587e-17;  // and what it lacks
  const double turns = rint(angle * kTwoOverPi);
  // Both products are multiples of 2^-52 and their difference is below 1, so it is exact.
  const double high = fma(-turns, kHalfPi, angle);
  const double r = fma(-turns, kHalfPiRest, high);
  const double r2 = r * r;
  // Taylor polynomials, to r^11 and r^10, for |r| <= pi/4.
  double sine = fma(r2, -1.0 / 39916800, 1.0 / 362880);
  sine = fma(r2, sine, -1.0 / 5040);
  sine = fma(r2, sine, 1.0 / 120);
  sine = fma(r2, sine, -1.0 / 6);
  sine = fma(r2 * r, sine, r);
  double cosine = fma(r2, -1.0 / 3628800, 1.0 / 40320);
  cosine = fma(r2, cosine, -1.0 / 720);
  cosine = fma(r2, cosine, 1.0 / 24);
  cosine = fma(r2, cosine, -0.5);
  cosine = fma(r2, cosine, 1.0);
  const auto quadrant = static_cast<int64_t>(turns) & 3;
  const bool swapped = (quadrant & 1) != 0;
  const auto c = static_cast<float>(swapped ? sine : cosine);
  const auto s = static_cast<float>(swapped ? cosine : sine);
  cos = quadrant == 1 || quadrant == 2 ? -c : c;
  sin = quadrant >= 2 ? -s : s;
}

}  // namespace retnet::kernels::cuda::prim
