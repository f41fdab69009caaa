// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>

#include "kernels/cpu/norm/params.h"
#include "kernels/cpu/simd/exponential.h"
#include "kernels/cpu/simd/row.h"
#include "kernels/cpu/simd/vector.h"

namespace retnet::kernels::cpu {
namespace {

/// The statistics of a token of a head, and its normalised channels.
template <int kLanes, class Scalar>
struct Normed {
  using V = F<kLanes>;
  explicit Normed(const GatedGroupNormParams& p_) : p(p_) {
    const auto count = static_cast<float>(p.head_dim_v);
    if (p.norm == Norm::kLayer) {
      V sum = {};
      each_vector<kLanes>(p.head_dim_v, [&](int64_t c, int64_t n) {
        sum += load_channels<kLanes, Scalar>(p.x, c, n);
      });
      mean = sum_lanes<kLanes>(sum) / count;
    }
    // The variance is taken of the centred values, because mean(x^2) - mean(x)^2 cancels.
    V squares = {};
    each_vector<kLanes>(p.head_dim_v, [&](int64_t c, int64_t n) {
      V x = load_channels<kLanes, Scalar>(p.x, c, n) - mean;
      for (int64_t i = n; i < kLanes; ++i) x[i] = 0;
      squares += x * x;
    });
    factor = 1 / std::sqrt(sum_lanes<kLanes>(squares) / count + p.eps);
  }
  RETNET_INLINE V at(int64_t c, int64_t n) const {
    return (load_channels<kLanes, Scalar>(p.x, c, n) - mean) * factor;
  }
  RETNET_INLINE V affine(V normed, int64_t c, int64_t n) const {
    if (p.weight) normed *= load_channels<kLanes, float>(p.weight, c, n);
    if (p.bias) normed += load_channels<kLanes, float>(p.bias, c, n);
    return normed;
  }
  const GatedGroupNormParams& p;
  float mean = 0, factor = 0;
};

template <int kLanes, class Scalar>
void gated_group_norm(const GatedGroupNormParams& p) {
  using V = F<kLanes>;
  const Normed<kLanes, Scalar> normed(p);
  each_vector<kLanes>(p.head_dim_v, [&](int64_t c, int64_t n) {
    V out = normed.affine(normed.at(c, n), c, n);
    if (p.gate) {
      const V gate = load_channels<kLanes, Scalar>(p.gate, c, n);
      out *= gate * sigmoid<kLanes>(gate);
    }
    store_channels<kLanes, Scalar>(p.out, c, n, out);
  });
}

template <int kLanes, class Scalar>
void gated_group_norm_backward(const GatedGroupNormBackwardParams& g) {
  using V = F<kLanes>;
  const auto& p = g.forward;
  const Normed<kLanes, Scalar> normed(p);
  V sum = {}, products = {};  // of the gradient of normed, and of its products with normed
  each_vector<kLanes>(p.head_dim_v, [&](int64_t c, int64_t n) {
    const V x = normed.at(c, n);
    V grad = load_channels<kLanes, Scalar>(g.grad_out, c, n);  // of out, then of each value before
    if (p.gate) {
      const V gate = load_channels<kLanes, Scalar>(p.gate, c, n), s = sigmoid<kLanes>(gate);
      if (g.grad_gate) {
        const V swish_grad = s * ((1.0F - s) * gate + 1.0F);
        store_channels<kLanes, Scalar>(g.grad_gate, c, n,
                                       grad * normed.affine(x, c, n) * swish_grad);
      }
      grad *= gate * s;
    }
    if (g.grad_bias) {
      store_channels<kLanes, float>(g.grad_bias, c, n,
                                    load_channels<kLanes, float>(g.grad_bias, c, n) + grad);
    }
    if (g.grad_weight) {
      store_channels<kLanes, float>(g.grad_weight, c, n,
                                    load_channels<kLanes, float>(g.grad_weight, c, n) + grad * x);
    }
    if (p.weight) grad *= load_channels<kLanes, float>(p.weight, c, n);
    store_channels<kLanes, float>(g.workspace, c, n, grad);
    sum += grad;  // grad_out is zero beyond the channels
    products += grad * x;
  });
  if (!g.grad_x) return;
  const auto count = static_cast<float>(p.head_dim_v);
  const float mean = p.norm == Norm::kLayer ? sum_lanes<kLanes>(sum) / count : 0;
  const float mean_product = sum_lanes<kLanes>(products) / count;
  each_vector<kLanes>(p.head_dim_v, [&](int64_t c, int64_t n) {
    const V grad =
        load_channels<kLanes, float>(g.workspace, c, n) - mean - normed.at(c, n) * mean_product;
    store_channels<kLanes, Scalar>(g.grad_x, c, n, grad * normed.factor);
  });
}

}  // namespace
}  // namespace retnet::kernels::cpu
