// SPDX-License-Identifier: Apache-2.0
//
// The gated group norm of one token of one head. Its channels are dense and have the dtype of the
// kernel. Weight, bias and sums are float. A null pointer stands for a tensor that is absent or not
// required.
#pragma once

#include <cstdint>

namespace retnet::kernels::cpu {

enum class Norm : int { kLayer, kRms };

/// out = (normed weight + bias) gate sigmoid(gate)
///     kLayer: normed = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)
///     kRms:   normed = x / sqrt(mean(x^2) + eps)
struct GatedGroupNormParams {
  int64_t head_dim_v;
  Norm norm;
  float eps;
  const void *x, *gate;  // [head_dim_v], like all others
  const float *weight, *bias;
  void *out;
};

/// Writes the gradients of x and gate. Adds to those of weight and bias.
struct GatedGroupNormBackwardParams {
  GatedGroupNormParams forward;  // out is not used
  const void *grad_out;
  void *grad_x, *grad_gate;
  float *grad_weight, *grad_bias;
  float *workspace;  // [head_dim_v]
};

}  // namespace retnet::kernels::cpu
