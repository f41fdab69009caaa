// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "cpu/norm.h"
#include "cpu/vector.h"

namespace retnet::cpu {
namespace {

/// e^x to 2 units in the last place: 2^n times a polynomial on |r| <= ln 2 / 2. Beyond +-87 as
/// there, infinite above 88; NaN stays NaN.
template <int kLanes>
RETNET_INLINE F<kLanes> exponential(F<kLanes> x) {
  using V = F<kLanes>;
  const V high = V{} + 87.0F, low = V{} - 87.0F;
  V y = x > high ? high : x;
  y = y < low ? low : y;
  const float magic = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  const V shifted = y * 1.44269504F + magic, n = shifted - magic;
  const V r = (y - n * 0.693359375F) + n * 2.12194440e-4F;  // minus n ln 2, in two parts
  V e = r * 1.9875691500e-4F + 1.3981999507e-3F;
  e = e * r + 8.3334519073e-3F;
  e = e * r + 4.1665795894e-2F;
  e = e * r + 1.6666665459e-1F;
  e = e * r + 5.0000001201e-1F;
  e = e * (r * r) + r + 1.0F;
  const V scaled = bits<V>(bits<U<kLanes>>(e) + (bits<U<kLanes>>(shifted) << 23));
  const V result = x > 88.0F ? V{} + INFINITY : scaled;
  return x == x ? result : x;
}

template <int kLanes>
RETNET_INLINE F<kLanes> sigmoid(F<kLanes> x) {
  return 1.0F / (exponential<kLanes>(-x) + 1.0F);
}

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

/// A row's statistics, and its normalised channels.
template <int kLanes, class Scalar>
struct Normed {
  using V = F<kLanes>;
  explicit Normed(const GatedNormParams& p_) : p(p_) {
    const auto count = static_cast<float>(p.channels);
    if (p.centred) {
      V sum = {};
      each_vector<kLanes>(
          p.channels, [&](int64_t c, int64_t n) { sum += channels_at<kLanes, Scalar>(p.x, c, n); });
      mean = sum_of<kLanes>(sum) / count;
    }
    // Of the centred values: mean(x^2) - mean(x)^2 cancels.
    V squares = {};
    each_vector<kLanes>(p.channels, [&](int64_t c, int64_t n) {
      V x = channels_at<kLanes, Scalar>(p.x, c, n) - mean;
      for (int64_t i = n; i < kLanes; ++i) x[i] = 0;
      squares += x * x;
    });
    factor = 1 / std::sqrt(sum_of<kLanes>(squares) / count + p.eps);
  }
  RETNET_INLINE V at(int64_t c, int64_t n) const {
    return (channels_at<kLanes, Scalar>(p.x, c, n) - mean) * factor;
  }
  RETNET_INLINE V affine(V normed, int64_t c, int64_t n) const {
    if (p.weight) normed *= channels_at<kLanes, float>(p.weight, c, n);
    if (p.bias) normed += channels_at<kLanes, float>(p.bias, c, n);
    return normed;
  }
  const GatedNormParams& p;
  float mean = 0, factor = 0;
};

template <int kLanes, class Scalar>
void gated_norm(const GatedNormParams& p) {
  using V = F<kLanes>;
  const Normed<kLanes, Scalar> normed(p);
  each_vector<kLanes>(p.channels, [&](int64_t c, int64_t n) {
    V y = normed.affine(normed.at(c, n), c, n);
    if (p.gate) {
      const V gate = channels_at<kLanes, Scalar>(p.gate, c, n);
      y *= gate * sigmoid<kLanes>(gate);
    }
    store_channels<kLanes, Scalar>(p.out, c, n, y);
  });
}

template <int kLanes, class Scalar>
void gated_norm_grad(const GatedNormGradParams& g) {
  using V = F<kLanes>;
  const auto& p = g.forward;
  const Normed<kLanes, Scalar> normed(p);
  V sum = {}, products = {};  // of the gradient of normed, and of it times normed
  each_vector<kLanes>(p.channels, [&](int64_t c, int64_t n) {
    const V x = normed.at(c, n);
    V grad = channels_at<kLanes, Scalar>(g.grad_out, c, n);  // of each intermediate value in turn
    if (p.gate) {
      const V gate = channels_at<kLanes, Scalar>(p.gate, c, n), s = sigmoid<kLanes>(gate);
      if (g.grad_gate) {
        const V slope = s * ((1.0F - s) * gate + 1.0F);
        store_channels<kLanes, Scalar>(g.grad_gate, c, n, grad * normed.affine(x, c, n) * slope);
      }
      grad *= gate * s;
    }
    if (g.grad_bias) {
      store_channels<kLanes, float>(g.grad_bias, c, n,
                                    channels_at<kLanes, float>(g.grad_bias, c, n) + grad);
    }
    if (g.grad_weight) {
      store_channels<kLanes, float>(g.grad_weight, c, n,
                                    channels_at<kLanes, float>(g.grad_weight, c, n) + grad * x);
    }
    if (p.weight) grad *= channels_at<kLanes, float>(p.weight, c, n);
    store_channels<kLanes, float>(g.scratch, c, n, grad);
    sum += grad;  // grad_out is zero beyond the row
    products += grad * x;
  });
  if (!g.grad_x) return;
  const auto count = static_cast<float>(p.channels);
  const float mean = p.centred ? sum_of<kLanes>(sum) / count : 0;
  const float slope = sum_of<kLanes>(products) / count;
  each_vector<kLanes>(p.channels, [&](int64_t c, int64_t n) {
    const V grad = channels_at<kLanes, float>(g.scratch, c, n) - mean - normed.at(c, n) * slope;
    store_channels<kLanes, Scalar>(g.grad_x, c, n, grad * normed.factor);
  });
}

}  // namespace
}  // namespace retnet::cpu
