// SPDX-License-Identifier: Apache-2.0
//
// Three passes over a row compute its maximum, its exponentials and their sum, and the gradient.
// The first reads the row from memory, the others from cache.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/cpu/cross_entropy/params.h"
#include "kernels/cpu/simd/exponential.h"
#include "kernels/cpu/simd/row.h"
#include "kernels/cpu/simd/vector.h"

namespace retnet::kernels::cpu {
namespace {

/// Loads n logits from column c on. The lanes beyond them get -infinity, which changes no maximum
/// and no sum.
template <int kLanes, class Scalar>
RETNET_INLINE F<kLanes> load_logits(const CrossEntropyParams& p, int64_t c, int64_t n) {
  auto x = load_channels<kLanes, Scalar>(p.logits, c, n);
  for (int64_t i = n; i < kLanes; ++i) x[i] = -INFINITY;
  return x;
}

/// Returns the largest logit. It ignores NaN, which makes the sum NaN later.
template <int kLanes, class Scalar>
RETNET_INLINE float maximum(const CrossEntropyParams& p) {
  using V = F<kLanes>;
  V highest = V{} - INFINITY;
  each_vector<kLanes>(p.classes, [&](int64_t c, int64_t n) {
    const V x = load_logits<kLanes, Scalar>(p, c, n);
    highest = x > highest ? x : highest;
  });
  float max = -INFINITY;
  for (int i = 0; i < kLanes; ++i) max = highest[i] > max ? highest[i] : max;
  return max;
}

template <int kLanes, class Scalar>
double cross_entropy(const CrossEntropyParams& p) {
  using V = F<kLanes>;
  const auto max = maximum<kLanes, Scalar>(p);
  // The sum is taken by blocks, because one float32 sum of many terms would lose the last bits of
  // each.
  constexpr int64_t kBlock = 64 * kLanes;
  double sum = 0;
  for (int64_t first = 0; first < p.classes; first += kBlock) {
    V part = {};
    each_vector<kLanes>(std::min(kBlock, p.classes - first), [&](int64_t c, int64_t n) {
      const V x = load_logits<kLanes, Scalar>(p, first + c, n) - max;
      // exponential() never returns zero, not even for -infinity.
      const V e = x < -87.0F ? V{} : exponential<kLanes>(x);
      store_channels<kLanes, float>(p.exponentials, first + c, n, e);
      part += e;
    });
    sum += sum_lanes<kLanes>(part);
  }
  const double loss =
      std::log(sum) + (double{max} - load_logits<kLanes, Scalar>(p, p.target, 1)[0]);
  const auto factor = static_cast<float>(1 / sum);
  each_vector<kLanes>(p.classes, [&](int64_t c, int64_t n) {
    const V e = load_channels<kLanes, float>(p.exponentials, c, n);
    store_channels<kLanes, Scalar>(p.logits, c, n, e * factor);
  });
  // The difference is rounded once. Its terms are not rounded before.
  const V at_target = load_channels<kLanes, float>(p.exponentials, p.target, 1) * factor - 1.0F;
  store_channels<kLanes, Scalar>(p.logits, p.target, 1, at_target);
  return loss;
}

}  // namespace
}  // namespace retnet::kernels::cpu
