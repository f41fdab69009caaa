// SPDX-License-Identifier: Apache-2.0
//
// The step reads and writes each element of the state once, from and to memory: several vectors of
// a row at a time, their outputs in registers, the rows ahead fetched early.
#pragma once

#include "cpu/step.h"
#include "cpu/vector.h"

namespace retnet::cpu {
namespace {

/// Columns first .. of kVectors vectors.
template <int kLanes, int kVectors>
RETNET_INLINE void step_columns(const StepParams& p, int64_t first) {
  using V = F<kLanes>;
  constexpr int64_t kAhead = 16;  // rows; into the L2 cache, which is faster than into the L1 cache
  V out[kVectors] = {};
  const float change = p.change;
  for (int64_t r = 0; r < p.inner; ++r) {
    float* row = p.state + r * p.state_stride + first;
    const float k = p.k[r], q = p.q[r];
    // Past the last row this is beyond the state: a prefetch does not fault.
    const auto ahead = reinterpret_cast<uintptr_t>(row) + kAhead * p.state_stride * sizeof(float);
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      if (i * kLanes % 16 == 0) {
        __builtin_prefetch(reinterpret_cast<const void*>(ahead + i * kLanes * sizeof(float)), 0, 2);
      }
      const V v = load<V>(p.v + first + i * kLanes);
      V s = V{};
      if (!p.is_zero) {
        s = load<V>(row + i * kLanes);
        s = s * change + s;
      }
      s = v * k + s;
      store(row + i * kLanes, s);
      out[i] = s * q + out[i];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) store(p.out + first + i * kLanes, out[i] * p.scale);
}

template <int kLanes>
void step(const StepParams& p) {
  constexpr int kVectors = 8;
  int64_t c = 0;
  for (; c + kVectors * kLanes <= p.outer; c += kVectors * kLanes) {
    step_columns<kLanes, kVectors>(p, c);
  }
  for (; c + kLanes <= p.outer; c += kLanes) step_columns<kLanes, 1>(p, c);
  for (; c < p.outer; ++c) {
    float out = 0;
    for (int64_t r = 0; r < p.inner; ++r) {
      float& s = p.state[r * p.state_stride + c];
      s = p.v[c] * p.k[r] + (p.is_zero ? 0 : s * p.change + s);
      out = s * p.q[r] + out;
    }
    p.out[c] = out * p.scale;
  }
}

}  // namespace
}  // namespace retnet::cpu
