// SPDX-License-Identifier: Apache-2.0
//
// The linear layer of a decoding step on the CPU: a few tokens, bfloat16, bound by reading the
// weight.
#pragma once

#include <cstdint>

#include "kernels/cpu/scalar.h"

namespace retnet::kernels::cpu {

constexpr int64_t kLinearRows = 4;  // tokens at most
/// Rows of the weight that are best computed at once are a multiple.
constexpr int64_t kLinearPart = 24;

/// A token as the kernel of an instruction set reads it.
struct LinearTokenParams {
  int64_t channels;
  const BFloat16* x;
  float* to;  // of as many floats as linear_token_size says
};
inline int64_t linear_token_size(int64_t channels) { return (channels + 31) / 32 * 32; }

/// y = x W^T + bias. Products are exact, sums are float, y is rounded once. A token's bits do not
/// depend on how many there are.
struct LinearParams {
  int64_t tokens, in, out;
  const float* x;          // the tokens, linear_token_size(in) apart
  const BFloat16* weight;  // [out, in], dense rows
  int64_t weight_stride;   // of a row
  const BFloat16* bias;    // [out]; null: none
  BFloat16* y;             // [tokens, out]
  int64_t y_stride;        // of a token
};

}  // namespace retnet::kernels::cpu
