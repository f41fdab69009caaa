// SPDX-License-Identifier: Apache-2.0
//
// The gated group norm of one token of one head. Its channels are dense and have the dtype of the
// kernel. Weight, bias and sums are float. A null pointer stands for a tensor that is absent or not
// asked for.
#pragma once

#include <cstdint>

namespace retnet::kernels::cpu {

/// out = (normed weight + bias) gate sigmoid(gate)
///     "layer": normed = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)
///     "rms":   normed = x / sqrt(mean(x^2) + eps)
struct GatedNormParams {
  int64_t channels;
  float eps;
  bool centred;          // "layer"; else "rms"
  const void *x, *gate;  // [channels], like all others
  const float *weight, *bias;
  void *out;
};

/// Writes the gradients of x and gate. Adds to those of weight and bias.
struct GatedNormGradParams {
  GatedNormParams forward;  // out is not used
  const void *grad_out;
  void *grad_x, *grad_gate;
  float *grad_weight, *grad_bias;
  float *workspace;  // [channels]
};

}  // namespace retnet::kernels::cpu
