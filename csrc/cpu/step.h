// SPDX-License-Identifier: Apache-2.0
//
// Decoding on the CPU: one token of one head. Everything is float; the last dimension is dense.
#pragma once

#include <cstdint>

namespace retnet::cpu {

/// S <- gamma S + k^T v, out = scale q S, in one pass over the state.
struct StepParams {
  int64_t inner, outer;
  const float *q, *k;    // [inner]
  const float* v;        // [outer]
  float* state;          // [inner] rows of outer
  int64_t state_stride;  // of a row
  bool is_zero;          // gamma = 0: the old state is dropped, since NaN * 0 is NaN
  float change;          // gamma - 1
  float scale;
  float* out;  // [outer]
};

/// out = (normed weight + bias) gate sigmoid(gate), with normed = (x - mean) / sqrt(var + eps), or
/// without the mean.
struct GatedNormParams {
  int64_t channels;
  const float* x;                // [channels], as all others
  const float *gate, *weight, *bias;  // null: absent
  float eps;
  bool centred;  // "layer", or "rms"
  float* out;
};

}  // namespace retnet::cpu
