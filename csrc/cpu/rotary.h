// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace retnet::cpu {

/// The rotation of one row (one token of one head), of the kernel's dtype and dense: of each pair
/// (a, b) of channels, a <- a cos - b sin, b <- a sin + b cos.
struct RotaryParams {
  int64_t pairs;
  bool interleaved;        // pairs of neighbours, or of the two halves
  const float *cos, *sin;  // [pairs]
  const void* x;           // [2 pairs]
  void* out;               // [2 pairs]
};

}  // namespace retnet::cpu
