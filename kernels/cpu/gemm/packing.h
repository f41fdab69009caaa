// SPDX-License-Identifier: Apache-2.0
//
// The ways from tensors to register tiles and back. Tokens are packed into dense factors, and tiles
// are stored into rows of a tensor.
#pragma once

#include <cstdint>

#include "kernels/cpu/gemm/register_tile.h"

namespace retnet::kernels::cpu {
namespace {

inline constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// The stride of packed rows of `items` items. It is one cache line more, because rows that lie a
/// power of two apart fall into a few sets of the L1 cache and evict one another.
inline constexpr int64_t padded_stride(int64_t items) {
  constexpr int64_t kLineItems = 16;  // 32-bit items of a cache line
  return items + kLineItems;
}

/// Up to `columns` channels of up to `rows` tokens of one head; zeros beyond.
template <class Scalar>
struct OperandView {
  const Scalar* ptr;  // null: all zeros
  int64_t stride;     // of a row
  int64_t rows, columns;

  /// Prefetches the line four rows below. The hardware does not, because rows lie pages apart.
  RETNET_INLINE void prefetch(int64_t row, int64_t column) const {
    if (row + 4 < rows && ptr != nullptr) __builtin_prefetch(ptr + (row + 4) * stride + column);
  }

  template <int kLanes>
  RETNET_INLINE F<kLanes> floats(int64_t row, int64_t column) const {
    if (row >= rows || column >= columns || ptr == nullptr) return F<kLanes>{};
    const Scalar* p = ptr + row * stride + column;
    return column + kLanes <= columns ? load_as_float<kLanes>(p)
                                      : load_first_as_float<kLanes>(p, columns - column);
  }

  /// Returns the bits of kCount 16-bit elements.
  template <int kCount>
  RETNET_INLINE H<kCount> halves(int64_t row, int64_t column) const {
    H<kCount> x{};
    if (row >= rows || column >= columns || ptr == nullptr) return x;
    const Scalar* p = ptr + row * stride + column;
    if (column + kCount <= columns) return load<H<kCount>>(p);
    __builtin_memcpy(&x, p, (columns - column) * sizeof(Scalar));
    return x;
  }
};

/// Packs tokens whose channels are the depth. A row has columns / kItemDepth items, and rows lie
/// `stride` items apart.
template <class Operand, class Scalar>
RETNET_NOINLINE void pack_row_major(const OperandView<Scalar>& x, int64_t rows, int64_t columns,
                                    typename Operand::Item* to, int64_t stride) {
  constexpr int kLanes = Operand::kLanes;
  for (int64_t r = 0; r < rows; ++r) {
    auto* row = to + r * stride;
    for (int64_t c = 0; c < columns; c += 2 * kLanes) {
      x.prefetch(r, c);
      if constexpr (Operand::kItemDepth == 1) {
        x.prefetch(r, c + kLanes);
        Operand::store_row(row + c, x.template floats<kLanes>(r, c),
                           x.template floats<kLanes>(r, c + kLanes));
      } else {
        store(row + c / 2, x.template halves<2 * kLanes>(r, c));
      }
    }
  }
}

/// Packs tokens that are themselves the depth. Token r is multiplied by weight[r], if weight is not
/// null. Items of kItemDepth tokens make a row. Rows are `stride` items apart and cut into blocks
/// of `block` columns. Blocks are `block_stride` items apart.
template <class Operand, class Scalar>
RETNET_NOINLINE void pack_depth_major(const OperandView<Scalar>& x, int64_t rows, int64_t columns,
                                      const float* weight, typename Operand::Item* to,
                                      int64_t stride, int64_t block, int64_t block_stride) {
  constexpr int kItemDepth = Operand::kItemDepth, kLanes = Operand::kLanes;
  for (int64_t r = 0; r < rows; r += kItemDepth) {
    for (int64_t first = 0; first < columns; first += block) {
      auto* row = to + first / block * block_stride + r / kItemDepth * stride;
      if constexpr (kItemDepth == 2) {
        if (weight == nullptr) {
          for (int64_t c = 0; c < block; c += 2 * kLanes) {
            x.prefetch(r, first + c);
            x.prefetch(r + 1, first + c);
            Operand::store_interleaved(row + c, x.template halves<2 * kLanes>(r, first + c),
                                       x.template halves<2 * kLanes>(r + 1, first + c));
          }
          continue;
        }
      }
      for (int64_t c = 0; c < block; c += kLanes) {
        typename Operand::V tokens[kItemDepth];
        for (int d = 0; d < kItemDepth; ++d) {
          x.prefetch(r + d, first + c);
          tokens[d] = x.template floats<kLanes>(r + d, first + c);
          if (weight != nullptr && r + d < x.rows) tokens[d] *= weight[r + d];
        }
        Operand::store_items(row + c, tokens);
      }
    }
  }
}

/// Stores the first `columns` of a tile's columns into a row of a tensor, rounded.
template <class Operand, class Scalar>
RETNET_INLINE void store_columns(Scalar* p, const typename Operand::V& x,
                                 const typename Operand::V& y, int64_t columns) {
  constexpr int kLanes = Operand::kLanes;
  if (columns >= 2 * kLanes) {
    Operand::store_row(p, x, y);
  } else if (columns >= kLanes) {
    store_rounded<kLanes>(p, x);
    store_first_rounded<kLanes>(p + kLanes, y, columns - kLanes);
  } else {
    store_first_rounded<kLanes>(p, x, columns);
  }
}

/// Stores the first `rows` rows of a tile at column `column` of tensor rows of `columns` columns,
/// rounded.
template <class Operand, int kRows, class Scalar>
RETNET_INLINE void store_tile(RegisterTile<Operand, kRows>& tile, int64_t rows, Scalar* p,
                              int64_t stride, int64_t column, int64_t columns) {
  tile.each_row([&](int r, const typename Operand::V& x, const typename Operand::V& y) {
    if (r < rows) store_columns<Operand>(p + r * stride + column, x, y, columns - column);
  });
}

}  // namespace
}  // namespace retnet::kernels::cpu
