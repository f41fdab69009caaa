// SPDX-License-Identifier: Apache-2.0
//
// A dense row of a tensor, by vectors.
#pragma once

#include <cstdint>

#include "kernels/cpu/simd/vector.h"

namespace retnet::kernels::cpu {
namespace {

template <int kLanes>
RETNET_INLINE float sum_of(F<kLanes> x) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

/// n channels at column c of a row: kLanes, or fewer and zeros beyond.
template <int kLanes, class Scalar>
RETNET_INLINE F<kLanes> channels_at(const void* row, int64_t c, int64_t n) {
  const auto* p = static_cast<const Scalar*>(row) + c;
  return n == kLanes ? load_as_float<kLanes>(p) : load_first_as_float<kLanes>(p, n);
}
template <int kLanes, class Scalar>
RETNET_INLINE void store_channels(void* row, int64_t c, int64_t n, const F<kLanes>& x) {
  auto* p = static_cast<Scalar*>(row) + c;
  if (n == kLanes) {
    store_rounded<kLanes>(p, x);
  } else {
    store_first_rounded<kLanes>(p, x, n);
  }
}

/// f(c, n) over vectors of n channels, the last of fewer than kLanes.
template <int kLanes, class Function>
RETNET_INLINE void each_vector(int64_t channels, const Function& f) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) f(c, int64_t{kLanes});
  if (c < channels) f(c, channels - c);
}

/// Kernels::to_floats and from_floats.
template <int kLanes, class Scalar>
void to_floats(const void* row, int64_t channels, float* floats) {
  each_vector<kLanes>(channels, [&](int64_t c, int64_t n) {
    store_channels<kLanes, float>(floats, c, n, channels_at<kLanes, Scalar>(row, c, n));
  });
}
template <int kLanes, class Scalar>
void from_floats(const float* floats, int64_t channels, void* row) {
  each_vector<kLanes>(channels, [&](int64_t c, int64_t n) {
    store_channels<kLanes, Scalar>(row, c, n, channels_at<kLanes, float>(floats, c, n));
  });
}

}  // namespace
}  // namespace retnet::kernels::cpu
