// SPDX-License-Identifier: Apache-2.0
//
// A register tile: the sums of a few rows and two vectors of columns of a matrix product, which
// stay in registers over the whole depth of the product. Everything is done by folds and not by
// loops, because sums stay in registers only if their indices are constant.
#pragma once

#include "kernels/cpu/gemm/operand.h"

namespace retnet::kernels::cpu {
namespace {

template <class Operand>
constexpr int64_t kTileColumns = 2 * Operand::kLanes;

template <class Operand, int kRows>
struct RegisterTile {
  using Item = typename Operand::Item;
  using V = typename Operand::V;
  V sum[kRows][2];

  RETNET_INLINE void clear() {
    each([](int, int, V& x) { x = V{}; });
  }

  /// Calls f(row, vector, sum) for each vector of sums.
  template <class Function>
  RETNET_INLINE void each(const Function& f) {
    each(f, std::make_integer_sequence<int, 2 * kRows>{});
  }

  /// sum += left right, over a depth of `depth` items.
  ///   left   item (r, d) at left[r * left_row_stride + d * left_depth_stride]. Each item is
  ///          broadcast, so that a matrix and its transpose cost the same
  ///   right  kTileColumns items of depth d at right + d * right_depth_stride
  RETNET_INLINE void multiply_add(const Item* left, int64_t left_row_stride,
                                  int64_t left_depth_stride, const Item* right,
                                  int64_t right_depth_stride, int64_t depth) {
    for (int64_t d = 0; d < depth; ++d) {
      multiply_add_items(left, left_row_stride, Operand::load_items(right),
                         Operand::load_items(right + Operand::kLanes),
                         std::make_integer_sequence<int, kRows>{});
      left += left_depth_stride;
      right += right_depth_stride;
    }
  }

  /// Stores the tile as items of a factor whose depth is the rows of the tile. kItemDepth rows of
  /// the tile make a row of items. These rows lie `stride` items apart.
  RETNET_INLINE void store_depth_major(Item* to, int64_t stride) const {
    store_depth_major(to, stride,
                      std::make_integer_sequence<int, 2 * kRows / Operand::kItemDepth>{});
  }

  /// Stores the tile as rows of a left factor, `stride` items apart.
  RETNET_INLINE void store_row_major(Item* to, int64_t stride) {
    each_row([&](int r, const V& x, const V& y) { Operand::store_row(to + r * stride, x, y); });
  }

  /// Calls f(row, first half, second half) for each row.
  template <class Function>
  RETNET_INLINE void each_row(const Function& f) {
    each_row(f, std::make_integer_sequence<int, kRows>{});
  }

 private:
  template <class Function, int... i>
  RETNET_INLINE void each(const Function& f, std::integer_sequence<int, i...>) {
    (f(i / 2, i % 2, sum[i / 2][i % 2]), ...);
  }
  template <class Function, int... r>
  RETNET_INLINE void each_row(const Function& f, std::integer_sequence<int, r...>) {
    (f(r, sum[r][0], sum[r][1]), ...);
  }
  template <class Items, int... r>
  RETNET_INLINE void multiply_add_items(const Item* left, int64_t left_row_stride, Items right0,
                                        Items right1, std::integer_sequence<int, r...>) {
    const auto row = [&](auto x, V& sum0, V& sum1) {
      sum0 = Operand::multiply_add(x, right0, sum0);
      sum1 = Operand::multiply_add(x, right1, sum1);
    };
    (row(left[r * left_row_stride], sum[r][0], sum[r][1]), ...);
  }
  template <int... i>
  RETNET_INLINE void store_depth_major(Item* to, int64_t stride,
                                       std::integer_sequence<int, i...>) const {
    constexpr int kItemDepth = Operand::kItemDepth;
    const auto store_vector = [&](int row, int vector, const V& first, const V& last) {
      auto* p = to + row / kItemDepth * stride + vector * Operand::kLanes;
      if constexpr (kItemDepth == 1) {
        Operand::store_items(p, {first});
      } else {
        Operand::store_items(p, {first, last});
      }
    };
    (store_vector(i / 2 * kItemDepth, i % 2, sum[i / 2 * kItemDepth][i % 2],
                  sum[i / 2 * kItemDepth + kItemDepth - 1][i % 2]),
     ...);
  }
};

/// The number of rows of a tile as a type.
template <int kRows>
struct TileRows {
  static constexpr int value = kRows;
};

/// Calls f(TileRows<n>, first row) for tiles of n rows that cover [0, rows), an even number. Tiles
/// are as high as the instruction set allows, except the last ones.
template <class Operand, class Function>
RETNET_INLINE void each_tile(int64_t rows, const Function& f) {
  constexpr int kRows = Operand::Isa::kTileRows;
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) f(TileRows<kRows>{}, r);
  if constexpr (kRows > 4) {
    for (; r + 4 <= rows; r += 4) f(TileRows<4>{}, r);
  }
  for (; r < rows; r += 2) f(TileRows<2>{}, r);
}

/// The number of tiles that `each_tile` visits.
template <class Operand>
inline constexpr int64_t num_tiles(int64_t rows) {
  int64_t n = 0;
  each_tile<Operand>(rows, [&](auto, int64_t) { ++n; });
  return n;
}

}  // namespace
}  // namespace retnet::kernels::cpu
