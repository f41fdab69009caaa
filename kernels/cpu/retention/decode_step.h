// SPDX-License-Identifier: Apache-2.0
//
// The step reads and writes each element of the state once, from and to memory, in the order in
// which it lies there: four rows side by side, each a stream of its own, the rows ahead fetched
// early. The sums of the outputs stay in the cache.
#pragma once

#include "kernels/cpu/retention/decode_step_params.h"
#include "kernels/cpu/simd/vector.h"

namespace retnet::kernels::cpu {
namespace {

/// Rows r .. r + kRows of the state, one vector of columns from c on.
template <int kRows, class V>
RETNET_INLINE void step_at(const StepParams& p, int64_t r, int64_t c, const float (&k)[kRows],
                           const float (&q)[kRows]) {
  const V v = load<V>(p.v + c);
  V out = load<V>(p.out + c);
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
    float* state = p.state + (r + i) * p.state_stride + c;
    V s = V{};
    if (!p.is_zero) {
      s = load<V>(state);
      s = s * p.change + s;
    }
    s = v * k[i] + s;
    store(state, s);
    out = s * q[i] + out;
  }
  store(p.out + c, out);
}

template <int kLanes, int kRows>
RETNET_INLINE void step_rows(const StepParams& p, int64_t r) {
  constexpr int64_t kLine = 16;  // floats of a line of the cache
  static_assert(kLine % kLanes == 0);
  constexpr int64_t kAhead = 12 * 1024 / sizeof(float);
  float k[kRows], q[kRows];
  for (int i = 0; i < kRows; ++i) {
    k[i] = p.k[r + i];
    q[i] = p.q[r + i];
  }
  const int64_t rows = (kAhead + p.outer - 1) / p.outer;  // not one of those in work
  const int64_t ahead = (rows < kRows ? kRows : rows) * p.state_stride;
  int64_t c = 0;
  for (; c + kLine <= p.outer; c += kLine) {
    // Into the L2 cache, which is faster than into the L1 cache. Past the last row this is beyond
    // the state: a prefetch does not fault.
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const auto row = reinterpret_cast<uintptr_t>(p.state + (r + i) * p.state_stride + c);
      __builtin_prefetch(reinterpret_cast<const void*>(row + ahead * sizeof(float)), 0, 2);
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < kLine; i += kLanes) step_at<kRows, F<kLanes>>(p, r, c + i, k, q);
  }
  for (; c + kLanes <= p.outer; c += kLanes) step_at<kRows, F<kLanes>>(p, r, c, k, q);
  for (; c < p.outer; ++c) step_at<kRows, float>(p, r, c, k, q);
}

template <int kLanes>
void step(const StepParams& params) {
  constexpr int kRows = 4;
  const StepParams p = params;  // a copy, which no store can alias
  for (int64_t c = 0; c < p.outer; ++c) p.out[c] = 0;
  int64_t r = 0;
  for (; r + kRows <= p.inner; r += kRows) step_rows<kLanes, kRows>(p, r);
  for (; r < p.inner; ++r) step_rows<kLanes, 1>(p, r);
  for (int64_t c = 0; c < p.outer; ++c) p.out[c] *= p.scale;
}

}  // namespace
}  // namespace retnet::kernels::cpu
