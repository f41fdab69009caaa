// SPDX-License-Identifier: Apache-2.0
//
// The linear layer of a decode step. It multiplies a few tokens of bfloat16, and reading the weight
// bounds its speed.
#pragma once

#include <cstdint>

#include "kernels/cpu/scalar.h"

namespace retnet::kernels::cpu {

/// The most rows of x that the kernel takes, each of which is a token.
constexpr int64_t kLinearFewRows = 4;
/// The kernel is fastest if the number of rows of the weight is a multiple of this.
constexpr int64_t kLinearRowMultiple = 24;

/// The number of floats that a packed token takes.
inline int64_t linear_token_size(int64_t in_features) { return (in_features + 31) / 32 * 32; }

/// Packs a token as the linear kernel of the instruction set reads it.
struct LinearTokenParams {
  int64_t in_features;
  const BFloat16* x;
  float* packed;  // [linear_token_size(in_features)]
};

/// out = x weight^T + bias. Products are exact, sums are float, and out is rounded once. The bits
/// of a token do not depend on the number of tokens.
struct LinearParams {
  int64_t tokens, in_features, out_features;
  const float* packed_x;   // [tokens, linear_token_size(in_features)]
  const BFloat16* weight;  // [out_features, in_features], dense rows
  int64_t weight_stride;   // of a row
  const BFloat16* bias;    // [out_features]; null: none
  BFloat16* out;           // [tokens, out_features]
  int64_t out_stride;      // of a token
};

}  // namespace retnet::kernels::cpu
