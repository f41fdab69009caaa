// SPDX-License-Identifier: Apache-2.0
//
// Decoding on the CPU: one token of one head. Everything is float; the last dimension is dense.
#pragma once

#include <cstdint>

namespace retnet::kernels::cpu {

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

}  // namespace retnet::kernels::cpu
