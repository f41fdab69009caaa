// SPDX-License-Identifier: Apache-2.0
//
// A dense row of a tensor, taken vector by vector.
#pragma once

#include <cstdint>

#include "kernels/cpu/simd/float16.h"
#include "kernels/cpu/simd/vector.h"

namespace retnet::kernels::cpu {
namespace {

template <int kLanes>
RETNET_INLINE float sum_lanes(F<kLanes> x) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

/// Loads n <= kLanes channels of a row from column c on. Zeros follow them.
template <int kLanes, class Scalar>
RETNET_INLINE F<kLanes> load_channels(const void* row, int64_t c, int64_t n) {
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

/// Calls f(c, n) for the vectors of n channels that make up a row. Only the last may have n <
/// kLanes.
template <int kLanes, class Function>
RETNET_INLINE void each_vector(int64_t channels, const Function& f) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) f(c, int64_t{kLanes});
  if (c < channels) f(c, channels - c);
}

/// These are KernelTable::to_floats and from_floats.
template <int kLanes, class Scalar>
void to_floats(const void* row, int64_t channels, float* floats) {
  each_vector<kLanes>(channels, [&](int64_t c, int64_t n) {
    store_channels<kLanes, float>(floats, c, n, load_channels<kLanes, Scalar>(row, c, n));
  });
}
template <int kLanes, class Scalar>
void from_floats(const float* floats, int64_t channels, void* row) {
  each_vector<kLanes>(channels, [&](int64_t c, int64_t n) {
    store_channels<kLanes, Scalar>(row, c, n, load_channels<kLanes, float>(floats, c, n));
  });
}

}  // namespace
}  // namespace retnet::kernels::cpu
