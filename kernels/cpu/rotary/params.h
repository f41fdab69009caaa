// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace retnet::kernels::cpu {

/// Cosine and sine of position * frequencies[i]: the angle, below 2^51, and its remainder in float64:
/// up to 2^31 far positions are as good as near ones.
struct CosSinParams {
  int64_t pairs;
  double position;
  const float* frequencies;  // [pairs]
  float *cos, *sin;          // [pairs]
};

/// The rotation of one row (one token of one head), of the kernel's dtype and dense: of each pair
/// (a, b) of channels, a <- a cos - b sin, b <- a sin + b cos.
struct RotaryParams {
  int64_t pairs;
  bool interleaved;        // pairs of neighbours, or of the two halves
  const float *cos, *sin;  // [pairs]
  const void* x;           // [2 pairs]
  void* out;               // [2 pairs]
};

}  // namespace retnet::kernels::cpu
