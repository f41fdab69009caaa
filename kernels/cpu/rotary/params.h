// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace retnet::kernels::cpu {

/// Cosine and sine of the angles position * frequencies[i]. The angle, below 2^51, and its
/// remainder are float64: up to position 2^31 the error does not grow with the position.
struct CosSinParams {
  int64_t pairs;
  double position;
  const float* frequencies;  // [pairs]
  float *cos, *sin;          // [pairs]
};

/// The rotation of one token of one head. Its channels are dense and have the dtype of the kernel.
/// Each pair (a, b) of channels becomes (a cos - b sin, a sin + b cos).
struct RotaryParams {
  int64_t pairs;
  bool interleaved;        // pairs of neighbours; else of channels of the two halves
  const float *cos, *sin;  // [pairs]
  const void* x;           // [2 pairs]
  void* out;               // [2 pairs]
};

}  // namespace retnet::kernels::cpu
