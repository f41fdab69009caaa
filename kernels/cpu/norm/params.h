// SPDX-License-Identifier: Apache-2.0
//
// The gated group norm of one row (one token of one head) on the CPU. Rows are dense, of the
// kernel's dtype; weight, bias and sums are float. Null: absent, or not asked for.
#pragma once

#include <cstdint>

namespace retnet::kernels::cpu {

/// out = (normed weight + bias) gate sigmoid(gate), with normed = (x - mean) / sqrt(var + eps), or
/// without the mean.
struct GatedNormParams {
  int64_t channels;
  float eps;
  bool centred;          // "layer", or "rms"
  const void *x, *gate;  // [channels], as all others
  const float *weight, *bias;
  void *out;
};

/// The gradients of x and gate are written, those of weight and bias added to.
struct GatedNormGradParams {
  GatedNormParams forward;  // but for out
  const void *grad_out;
  void *grad_x, *grad_gate;
  float *grad_weight, *grad_bias;
  float *scratch;  // [channels]
};

}  // namespace retnet::kernels::cpu
