// SPDX-License-Identifier: Apache-2.0
//
// What the two passes over the chunks of a sequence share: views of the tokens of a chunk, and the
// state.
#pragma once

#include <algorithm>

#include "kernels/cpu/gemm/packing.h"
#include "kernels/cpu/gemm/register_tile.h"
#include "kernels/cpu/gemm/workspace.h"
#include "kernels/cpu/retention/params.h"

namespace retnet::kernels::cpu {
namespace {

/// The stride of packed rows with one item for each token of a chunk.
constexpr int64_t kChunkStride = padded_stride(kChunk);

/// Returns a view of the first `columns` channels of the chunk that begins at token `first` of
/// `tokens`. It has no tokens if `first` lies outside of the sequence.
template <class Scalar>
OperandView<Scalar> chunk_view(const TokenView& x, int64_t columns, int64_t first, int64_t tokens) {
  const auto* ptr = first < 0 ? nullptr : static_cast<const Scalar*>(x.ptr);
  return {ptr ? ptr + first * x.stride : nullptr, x.stride, std::min(kChunk, tokens - first),
          columns};
}

/// A state [rows][columns], padded to whole tiles, in blocks as wide as a tile. It is held in
/// floats, and as items of a right factor whose depth is the rows.
template <class Operand>
struct BlockedState {
  using Item = typename Operand::Item;
  static constexpr int64_t kWidth = kTileColumns<Operand>;
  static constexpr int kItemDepth = Operand::kItemDepth;
  int64_t rows, columns;
  float* values;  // [columns / kWidth][rows][kWidth]
  Item* items;    // [columns / kWidth][rows / kItemDepth][kWidth]; of floats: the values themselves

  BlockedState(Workspace& workspace, int64_t rows_, int64_t columns_)
      : rows(rows_), columns(columns_), values(workspace.take<float>(rows * columns)) {
    if constexpr (kItemDepth == 1) {
      items = values;
    } else {
      items = workspace.take<Item>(rows * columns / kItemDepth);
    }
  }
  float* block(int64_t column) const { return values + column * rows; }
  const Item* block_items(int64_t column) const { return items + column * rows / kItemDepth; }

  /// Writes rows first .. of the block that begins at `column`.
  template <int kRows>
  RETNET_INLINE void store(RegisterTile<Operand, kRows>& tile, int64_t first,
                           int64_t column) const {
    float* p = block(column) + first * kWidth;
    tile.each([&](int r, int vector, const typename Operand::V& sum) {
      cpu::store(p + r * kWidth + vector * Operand::kLanes, sum);
    });
    if constexpr (kItemDepth > 1) {
      tile.store_depth_major(items + (column * rows + first * kWidth) / kItemDepth, kWidth);
    }
  }

  /// Reads a state of `num_rows` rows and `num_columns` columns, and pads it with zeros.
  void read(const StateView& x, int64_t num_rows, int64_t num_columns) {
    for (int64_t column = 0; column < columns; column += kWidth) {
      for (int64_t first = 0; first < rows; first += 2) {
        float buffer[2][kWidth] = {};
        const int64_t width = std::min(kWidth, num_columns - column);
        for (int64_t r = 0; x.ptr != nullptr && r < std::min<int64_t>(2, num_rows - first); ++r) {
          const float* p = x.ptr + (first + r) * x.row_stride + column * x.column_stride;
          for (int64_t c = 0; c < width; ++c) buffer[r][c] = p[c * x.column_stride];
        }
        RegisterTile<Operand, 2> tile;
        tile.each([&](int r, int vector, auto& sum) {
          sum = load<typename Operand::V>(&buffer[r][vector * Operand::kLanes]);
        });
        store(tile, first, column);
      }
    }
  }

  /// Calls f(value, row, column) over [num_rows, num_columns], block by block.
  template <class Function>
  void each(int64_t num_rows, int64_t num_columns, const Function& f) const {
    for (int64_t column = 0; column < num_columns; column += kWidth) {
      const int64_t width = std::min(kWidth, num_columns - column);
      for (int64_t r = 0; r < num_rows; ++r) {
        for (int64_t c = 0; c < width; ++c) f(block(column)[r * kWidth + c], r, column + c);
      }
    }
  }

  void write(const MutableStateView& to, int64_t num_rows, int64_t num_columns) const {
    each(num_rows, num_columns, [&](float value, int64_t r, int64_t c) {
      to.ptr[r * to.row_stride + c * to.column_stride] = value;
    });
  }
};

/// sum += S + (gamma^n - 1) S, the decayed rows of the state that begin at `state`. The tile holds
/// what the chunk adds.
template <class Operand, int kRows>
RETNET_INLINE void add_decayed_state(RegisterTile<Operand, kRows>& tile, const float* state,
                                     float power_minus_one, bool gamma_is_zero) {
  if (gamma_is_zero) return;
  tile.each([&](int r, int vector, auto& sum) {
    const auto old =
        load<typename Operand::V>(state + r * kTileColumns<Operand> + vector * Operand::kLanes);
    sum += old * power_minus_one + old;
  });
}

}  // namespace
}  // namespace retnet::kernels::cpu
