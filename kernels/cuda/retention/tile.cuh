// SPDX-License-Identifier: Apache-2.0
//
// Tiles of 16-bit elements in shared memory: the swizzle, copies into them, and weights of their rows.
#pragma once

#include "kernels/cuda/prim/prim.cuh"

namespace retnet::kernels::cuda {

// Returns the offset of 16-byte unit `unit` of row `row` in a tile of 16-bit elements with kColumns
// columns. The units of a row change places with the row, so that the same unit of 8 rows lies in 8
// different groups of 4 banks.
template <int kColumns>
RETNET_DEVICE uint32_t swizzled(uint32_t row, uint32_t unit) {
  constexpr uint32_t kUnits = kColumns / 8 < 8 ? kColumns / 8 : 8;
  return row * kColumns * 2 + ((unit ^ (row * kUnits / 8 % kUnits)) << 4);
}

// Moves a swizzled address from the first 16 columns to the k-th 16 columns of the same row. If k is even,
// the address may lie in the first 32 columns. The swizzle changes the address only inside 128 bytes. The
// immediate offset of the instruction takes the rest.
RETNET_DEVICE uint32_t advance_columns(uint32_t address, int k) {
  return (address ^ (k % 4 * 32)) + k / 4 * 128;
}

// Multiplies the fragment of 16 tokens that ldmatrix_x4_t gives, 16 columns as operand a, by the weights
// of its tokens. `weights` points to this lane's first one (2 (lane % 4)) in shared memory.
template <DType kDtype>
RETNET_DEVICE void weigh_fragment(uint32_t (&to)[4], const uint32_t (&from)[4],
                                  const unsigned char* weights) {
  RETNET_UNROLL
  for (int half = 0; half < 2; ++half) {  // 8 tokens
    uint32_t weight[2];
    prim::load(weight, weights + 8 * half * 4);
    RETNET_UNROLL
    for (int i = 2 * half; i < 2 * half + 2; ++i) {
      float pair[2];
      prim::unpack_pair<kDtype>(from[i], pair[0], pair[1]);
      to[i] = prim::pack_pair<kDtype>(pair[0] * prim::word_to_float(weight[0]),
                                      pair[1] * prim::word_to_float(weight[1]));
    }
  }
}

// Copies kRows rows of kColumns columns from an array at `src`, whose rows lie `stride` elements apart:
// row `row` and those that follow it, or those before it if `direction` is -1. After `rows` rows, and from
// column `columns` on, there are zeros. If `wide`, copies have 16 bytes, else 8. This thread is `thread` of
// the kThreads of the block.
template <int kColumns, int kRows, int kThreads>
RETNET_DEVICE void load_tile(uint32_t dst, const char* src, int64_t stride, int row, int direction,
                             int rows, int columns, uint32_t thread, bool wide) {
  constexpr int kUnits = kColumns / 8, kRowsAPass = kThreads / kUnits;
  static_assert(kRowsAPass % 8 == 0 ||
                kRowsAPass == 4);  // a pass of 4 flips one bit of the swizzle
  const int unit = static_cast<int>(thread % kUnits);
  const int first = static_cast<int>(thread / kUnits);
  src += 16 * unit + 2 * (int64_t{row + direction * first} * stride);
  const int64_t pass_bytes = 2 * kRowsAPass * direction * stride;
  const uint32_t to = dst + swizzled<kColumns>(first, unit);
  rows -= first;
  columns -= 8 * unit;  // from the first of the unit
  const auto at = [&](int i) {
    return (to ^ (i * kRowsAPass % 8 * 16)) + i * kRowsAPass * kColumns * 2;
  };
  if (wide) {
    RETNET_UNROLL
    for (int i = 0; i < kRows / kRowsAPass; ++i, src += pass_bytes) {
      const bool inside = columns > 0 && i * kRowsAPass < rows;
      prim::cp_async<16>(at(i), src, inside ? 16 : 0);
    }
  } else {
    RETNET_UNROLL_BY(1)
    for (int i = 0; i < kRows / kRowsAPass; ++i, src += pass_bytes) {
      const bool inside = i * kRowsAPass < rows;
      prim::cp_async<8>(at(i), src, inside && columns > 0 ? 8 : 0);
      prim::cp_async<8>(at(i) + 8, src + 8, inside && columns > 4 ? 8 : 0);
    }
  }
}

}  // namespace retnet::kernels::cuda
