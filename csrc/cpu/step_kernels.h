// SPDX-License-Identifier: Apache-2.0
//
// The step reads and writes each element of the state once, from and to memory: several vectors of
// a row at a time, their outputs in registers, the rows ahead fetched early.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/step.h"
#include "cpu/vector.h"

namespace retnet::cpu {
namespace {

/// Columns first .. of kVectors vectors.
template <int kLanes, int kVectors>
RETNET_INLINE void step_columns(const StepParams& p, int64_t first) {
  using V = F<kLanes>;
  constexpr int64_t kAhead = 8;  // rows
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
        __builtin_prefetch(reinterpret_cast<const void*>(ahead + i * kLanes * sizeof(float)), 1);
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

/// e^x to 2 units in the last place: 2^n times a polynomial on |r| <= ln 2 / 2.
template <int kLanes>
RETNET_INLINE F<kLanes> exponential(F<kLanes> x) {
  using V = F<kLanes>;
  const V high = V{} + 88.0F, low = V{} - 87.0F;
  V y = x > high ? high : x;
  y = y < low ? low : y;
  const float magic = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const V shifted = y * 1.44269504F + magic, n = shifted - magic;
  const V r = (y - n * 0.693359375F) + n * 2.12194440e-4F;
  V e = r * 1.9875691500e-4F + 1.3981999507e-3F;
  e = e * r + 8.3334519073e-3F;
  e = e * r + 4.1665795894e-2F;
  e = e * r + 1.6666665459e-1F;
  e = e * r + 5.0000001201e-1F;
  e = e * (r * r) + r + 1.0F;
  const V result = bits<V>(bits<U<kLanes>>(e) + (bits<U<kLanes>>(shifted) << 23));
  return x == x ? result : x;
}

/// f(load, n, column) over vectors of n channels, the last of fewer than kLanes; load(p) are those
/// of a row, or zeros beyond.
template <int kLanes, class Function>
RETNET_INLINE void each_vector(int64_t channels, const Function& f) {
  int64_t c = 0;
  for (; c + kLanes <= channels; c += kLanes) f(c, int64_t{kLanes});
  if (c < channels) f(c, channels - c);
}

template <int kLanes>
RETNET_INLINE F<kLanes> load_channels(const float* p, int64_t n) {
  return n == kLanes ? load<F<kLanes>>(p) : load_first_as_float<kLanes>(p, n);
}

template <int kLanes>
RETNET_INLINE float sum_of(F<kLanes> x) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

template <int kLanes>
void gated_norm(const GatedNormParams& p) {
  using V = F<kLanes>;
  const float count = static_cast<float>(p.channels);
  float mean = 0;
  if (p.centred) {
    V sum = {};
    each_vector<kLanes>(p.channels,
                        [&](int64_t c, int64_t n) { sum += load_channels<kLanes>(p.x + c, n); });
    mean = sum_of<kLanes>(sum) / count;
  }
  V squares = {};
  each_vector<kLanes>(p.channels, [&](int64_t c, int64_t n) {
    // Lanes beyond the row hold the mean, which adds nothing.
    V x = load_channels<kLanes>(p.x + c, n);
    for (int64_t i = n; i < kLanes; ++i) x[i] = mean;
    squares += (x - mean) * (x - mean);
  });
  const float factor = 1 / std::sqrt(sum_of<kLanes>(squares) / count + p.eps);
  each_vector<kLanes>(p.channels, [&](int64_t c, int64_t n) {
    V y = (load_channels<kLanes>(p.x + c, n) - mean) * factor;
    if (p.weight) y *= load_channels<kLanes>(p.weight + c, n);
    if (p.bias) y += load_channels<kLanes>(p.bias + c, n);
    if (p.gate) {
      const V gate = load_channels<kLanes>(p.gate + c, n);
      y *= gate / (exponential<kLanes>(-gate) + 1.0F);
    }
    if (n == kLanes) {
      store(p.out + c, y);
    } else {
      store_first_rounded<kLanes>(p.out + c, y, n);
    }
  });
}

}  // namespace
}  // namespace retnet::cpu
