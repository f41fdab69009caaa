// SPDX-License-Identifier: Apache-2.0
//
// The decay of a head.
#pragma once

#include "kernels/cuda/prim/prim.cuh"

namespace retnet::kernels::cuda {

// gamma = exp(log_decay). If log_decay is positive or NaN, every power is NaN.
struct Decay {
  float log;           // ln gamma
  float log2;          // log2 gamma, but finite, so that gamma^0 = 1 if gamma = 0 too
  bool gamma_is_zero;  // a select then replaces states, because 0 times NaN is NaN

  RETNET_DEVICE explicit Decay(float log_decay) {
    constexpr float kLog2E = 1.4426950408889634f;
    log = log_decay <= 0 ? log_decay : prim::word_to_float(0x7fc00000u);
    gamma_is_zero = log < -3.4e38f;
    log2 = gamma_is_zero ? -1e30f : log * kLog2E;
  }
  // Returns gamma^n, for n >= 0.
  RETNET_DEVICE float power(float n) const { return prim::ex2(n * log2); }
  // Returns gamma^n - 1 without cancellation, for n > 0. A state decays by S + S * power_minus_one.
  RETNET_DEVICE float power_minus_one(int n) const {
    return prim::expm1(static_cast<float>(n) * log);
  }
};

}  // namespace retnet::kernels::cuda
