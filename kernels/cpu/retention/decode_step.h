// SPDX-License-Identifier: Apache-2.0
//
// The decode step reads and writes each element of the state once, from and to memory, in the order
// in which it lies there. It takes four rows side by side, each a stream of its own, and prefetches
// later rows. The sums of out stay in cache.
#pragma once

#include "kernels/cpu/retention/params.h"
#include "kernels/cpu/simd/vector.h"

namespace retnet::kernels::cpu {
namespace {

/// Updates rows r .. r + kRows - 1 of the state, in one vector V of columns from c on.
template <int kRows, class V>
RETNET_INLINE void update_columns(const DecodeStepParams& p, int64_t r, int64_t c,
                                  const float (&k)[kRows], const float (&q)[kRows]) {
  const V v = load<V>(p.v + c);
  V out = load<V>(p.out + c);
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
    float* state = p.state + (r + i) * p.state_stride + c;
    V s = V{};
    if (!p.gamma_is_zero) {
      s = load<V>(state);
      s = s * p.power_minus_one + s;
    }
    s = v * k[i] + s;
    store(state, s);
    out = s * q[i] + out;
  }
  store(p.out + c, out);
}

template <int kLanes, int kRows>
RETNET_INLINE void update_rows(const DecodeStepParams& p, int64_t r) {
  constexpr int64_t kLine = 16;  // floats of a cache line
  static_assert(kLine % kLanes == 0);
  constexpr int64_t kDistance = 12 * 1024 / sizeof(float);
  float k[kRows], q[kRows];
  for (int i = 0; i < kRows; ++i) {
    k[i] = p.k[r + i];
    q[i] = p.q[r + i];
  }
  const int64_t rows = (kDistance + p.head_dim_v - 1) / p.head_dim_v;  // ahead of those at hand
  const int64_t distance = (rows < kRows ? kRows : rows) * p.state_stride;
  int64_t c = 0;
  for (; c + kLine <= p.head_dim_v; c += kLine) {
    // A prefetch into the L2 cache is faster than one into the L1 cache. Past the last row the
    // address lies beyond the state, but a prefetch does not fault.
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const auto row = reinterpret_cast<uintptr_t>(p.state + (r + i) * p.state_stride + c);
      __builtin_prefetch(reinterpret_cast<const void*>(row + distance * sizeof(float)), 0, 2);
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < kLine; i += kLanes) update_columns<kRows, F<kLanes>>(p, r, c + i, k, q);
  }
  for (; c + kLanes <= p.head_dim_v; c += kLanes) update_columns<kRows, F<kLanes>>(p, r, c, k, q);
  for (; c < p.head_dim_v; ++c) update_columns<kRows, float>(p, r, c, k, q);
}

template <int kLanes>
void decode_step(const DecodeStepParams& params) {
  constexpr int kRows = 4;
  const DecodeStepParams p = params;  // a copy, which no store can alias
  for (int64_t c = 0; c < p.head_dim_v; ++c) p.out[c] = 0;
  int64_t r = 0;
  for (; r + kRows <= p.head_dim_qk; r += kRows) update_rows<kLanes, kRows>(p, r);
  for (; r < p.head_dim_qk; ++r) update_rows<kLanes, 1>(p, r);
  for (int64_t c = 0; c < p.head_dim_v; ++c) p.out[c] *= p.scale;
}

}  // namespace
}  // namespace retnet::kernels::cpu
