// SPDX-License-Identifier: Apache-2.0
//
// The pass backward in time of `RetentionBackwardParams`. The gradients of k and v share R, the
// gradient of the state. It is carried as `running_grad_state`, in blocks like the state of
// forward.h. V R^T reads R as a left factor, item by item, so grad_k comes out transposed,
// [head_dim_qk][kChunk], in floats. It is transposed back when it is stored. If the operand is a
// pair of bfloat16, R has two copies, in pairs along head_dim_qk for grad_v and along head_dim_v
// for grad_k.
//
// The blocks of R are taken in groups, so that R goes through the caches once a chunk. For each
// group the pass computes its part of grad_k, its columns of grad_v, and its update.
#pragma once

#include <algorithm>

#include "kernels/cpu/gemm/packing.h"
#include "kernels/cpu/gemm/prefetch.h"
#include "kernels/cpu/gemm/register_tile.h"
#include "kernels/cpu/gemm/workspace.h"
#include "kernels/cpu/retention/chunk.h"
#include "kernels/cpu/retention/params.h"

namespace retnet::kernels::cpu {
namespace {

template <class Operand>
struct BackwardWorkspace {
  using Item = typename Operand::Item;
  static constexpr int kItemDepth = Operand::kItemDepth;
  int64_t head_dim_qk, head_dim_v;  // padded to whole tiles
  // In items: of tokens as rows of the channels of q and of v, and of tokens as depth with the
  // channels of q.
  int64_t qk_row_stride, v_row_stride, qk_depth_stride;
  Workspace workspace;
  BlockedState<Operand> running_grad_state;
  // [head_dim_v / block][head_dim_qk][block / kItemDepth]; of floats, those of running_grad_state
  Item* running_grad_state_rows;
  Item* k_rows;              // [kChunk] rows of qk_row_stride
  Item* grad_out_rows;       // [kChunk] rows of v_row_stride
  Item* q_transposed;        // [head_dim_qk / kItemDepth] rows of kChunkStride
  Item* v_transposed;        // [head_dim_v / kItemDepth] rows of kChunkStride
  Item* q_depth;             // [kChunk / kItemDepth] rows of qk_depth_stride; before, q's rows
  Item* q_weighted;          // [kChunk / kItemDepth] rows of qk_depth_stride
  Item* grad_out_blocks;     // [head_dim_v / block][kChunk / kItemDepth][block]; before, v's rows
  Item* scores_transposed;   // [j][i / kItemDepth]
  Item* grad_scores;         // [i / kItemDepth] rows of kChunkStride, j
  float* grad_k_transposed;  // [head_dim_qk] rows of kChunkStride
  float* grad_k_rows;        // [kChunk] rows of head_dim_qk

  BackwardWorkspace(const RetentionBackwardParams& p, void* memory)
      : head_dim_qk(round_up(p.head_dim_qk, kTileColumns<Operand>)),
        head_dim_v(round_up(p.head_dim_v, kTileColumns<Operand>)),
        qk_row_stride(padded_stride(head_dim_qk / kItemDepth)),
        v_row_stride(padded_stride(head_dim_v / kItemDepth)),
        qk_depth_stride(padded_stride(head_dim_qk)),
        workspace(memory),
        running_grad_state(workspace, head_dim_qk, head_dim_v),
        running_grad_state_rows(kItemDepth == 1
                                    ? running_grad_state.items
                                    : workspace.take<Item>(head_dim_qk * head_dim_v / kItemDepth)),
        k_rows(workspace.take<Item>(kChunk * qk_row_stride)),
        grad_out_rows(workspace.take<Item>(kChunk * v_row_stride)),
        q_transposed(workspace.take<Item>(head_dim_qk / kItemDepth * kChunkStride)),
        v_transposed(workspace.take<Item>(head_dim_v / kItemDepth * kChunkStride)),
        q_depth(workspace.take<Item>(kChunk * qk_depth_stride)),
        q_weighted(workspace.take<Item>(kChunk / kItemDepth * qk_depth_stride)),
        grad_out_blocks(workspace.take<Item>(kChunk * v_row_stride)),
        scores_transposed(workspace.take<Item>(kChunk * kChunk / kItemDepth)),
        grad_scores(workspace.take<Item>(kChunk / kItemDepth * kChunkStride)),
        grad_k_transposed(workspace.take<float>(head_dim_qk * kChunkStride)),
        grad_k_rows(workspace.take<float>(kChunk * head_dim_qk)) {}
};

template <class Operand>
size_t retention_backward_workspace_bytes(const RetentionBackwardParams& p) {
  return BackwardWorkspace<Operand>(p, nullptr).workspace.bytes();
}

template <class Operand, class Scalar>
class BackwardPass {
  using Item = typename Operand::Item;
  using V = typename Operand::V;
  static constexpr int kItemDepth = Operand::kItemDepth, kLanes = Operand::kLanes;
  static constexpr int64_t kWidth = kTileColumns<Operand>;
  static constexpr int64_t kBlockItems = kChunk / kItemDepth * kWidth;  // of grad_out_blocks
  // Columns of a group. They are so many that sums of grad_k are long, and so few that a group fits
  // the L2 cache.
  static constexpr int64_t kGroup = 64;

 public:
  BackwardPass(const RetentionBackwardParams& p, void* memory) : p_(p), w_(p, memory) {}

  void run() {
    read_running_grad_state();
    first_ = round_up(p_.tokens, kChunk);
    while ((first_ -= kChunk) >= 0) chunk();
    if (p_.grad_initial_state.ptr) {
      w_.running_grad_state.write(p_.grad_initial_state, p_.head_dim_qk, p_.head_dim_v);
    }
  }

 private:
  void read_running_grad_state() {
    w_.running_grad_state.read(p_.grad_final_state, p_.head_dim_qk, p_.head_dim_v);
    if constexpr (kItemDepth > 1) {
      for (int64_t column = 0; column < w_.head_dim_v; column += kWidth) {
        for (int64_t row = 0; row < w_.head_dim_qk; ++row) {
          const float* p = w_.running_grad_state.block(column) + row * kWidth;
          Operand::store_row(
              w_.running_grad_state_rows + (column * w_.head_dim_qk + row * kWidth) / kItemDepth,
              load<V>(p), load<V>(p + kLanes));
        }
      }
    }
  }

  OperandView<Scalar> view(const TokenView& x, int64_t columns) const {
    return chunk_view<Scalar>(x, columns, first_, p_.tokens);
  }
  OperandView<Scalar> previous_view(const TokenView& x, int64_t columns) const {
    return chunk_view<Scalar>(x, columns, first_ - kChunk, p_.tokens);
  }

  void chunk() {
    length_ = std::min(kChunk, p_.tokens - first_);
    even_ = round_up(length_, 2);
    padded_ = round_up(length_, kWidth);
    for (int64_t j = 0; j < kChunk; ++j) {
      weight_[j] = j < length_ ? p_.decay.power[length_ - 1 - j] : 0;
    }
    prefetcher_.start(
        (num_tiles<Operand>(w_.head_dim_qk) + (p_.grad_v.ptr ? num_tiles<Operand>(even_) : 0)) *
        (w_.head_dim_v / kWidth));
    prefetcher_.add(previous_view(p_.q, p_.head_dim_qk));
    if (p_.grad_v.ptr) prefetcher_.add(previous_view(p_.k, p_.head_dim_qk));
    if (p_.grad_k.ptr) prefetcher_.add(previous_view(p_.v, p_.head_dim_v));
    prefetcher_.add(previous_view(p_.grad_out, p_.head_dim_v));
    pack();
    for (int64_t group = 0; group < w_.head_dim_v; group += kGroup) {
      const int64_t end = std::min(group + kGroup, w_.head_dim_v);
      if (p_.grad_k.ptr) {
        each_tile<Operand>(w_.head_dim_qk, [&](auto rows, int64_t i) {
          for (int64_t j = 0; j < padded_; j += kWidth) add_group_to_grad_k(rows, i, j, group, end);
        });
      }
      for (int64_t column = group; column < end; column += kWidth) {
        const Item* grad_out = w_.grad_out_blocks + column / kWidth * kBlockItems;
        if (p_.grad_v.ptr) {
          each_tile<Operand>(even_, [&](auto rows, int64_t j) {
            compute_grad_v(rows, j, column, grad_out);
            prefetcher_.fetch();
          });
        }
        each_tile<Operand>(w_.head_dim_qk, [&](auto rows, int64_t first) {
          update_running_grad_state(rows, first, column, grad_out);
          prefetcher_.fetch();
        });
      }
    }
    if (p_.grad_k.ptr) {
      each_tile<Operand>(w_.head_dim_qk, [&](auto rows, int64_t i) {
        for (int64_t j = 0; j < padded_; j += kWidth) finish_grad_k(rows, i, j);
      });
      store_grad_k();
    }
  }

  /// Packs the chunk and computes its scores and their gradients, as far as they are needed.
  void pack() {
    const auto q = view(p_.q, p_.head_dim_qk), k = view(p_.k, p_.head_dim_qk),
               v = view(p_.v, p_.head_dim_v), grad_out = view(p_.grad_out, p_.head_dim_v);
    if (p_.grad_v.ptr) {
      pack_row_major<Operand>(k, even_, w_.head_dim_qk, w_.k_rows, w_.qk_row_stride);
      // q_depth and grad_out_blocks hold rows until these are transposed.
      pack_row_major<Operand>(q, padded_, w_.head_dim_qk, w_.q_depth, w_.qk_row_stride);
      transpose<kLanes>(w_.q_depth, w_.qk_row_stride, padded_, w_.head_dim_qk / kItemDepth,
                        w_.q_transposed, kChunkStride);
      compute_scores_transposed();
    }
    if (p_.grad_k.ptr) {
      pack_row_major<Operand>(grad_out, even_, w_.head_dim_v, w_.grad_out_rows, w_.v_row_stride);
      pack_row_major<Operand>(v, padded_, w_.head_dim_v, w_.grad_out_blocks, w_.v_row_stride);
      transpose<kLanes>(w_.grad_out_blocks, w_.v_row_stride, padded_, w_.head_dim_v / kItemDepth,
                        w_.v_transposed, kChunkStride);
      compute_grad_scores();
      pack_depth_major<Operand>(q, even_, w_.head_dim_qk, nullptr, w_.q_depth, w_.qk_depth_stride,
                                w_.head_dim_qk, 0);
    }
    pack_depth_major<Operand>(q, even_, w_.head_dim_qk, p_.decay.state_weight, w_.q_weighted,
                              w_.qk_depth_stride, w_.head_dim_qk, 0);
    pack_depth_major<Operand>(grad_out, even_, w_.head_dim_v, nullptr, w_.grad_out_blocks, kWidth,
                              kWidth, kBlockItems);
  }

  /// Computes the transposed scores, [j][i], from the block of the diagonal on.
  void compute_scores_transposed() {
    each_tile<Operand>(even_, [&](auto rows, int64_t j) {
      constexpr int kRows = decltype(rows)::value;
      for (int64_t i = j / kWidth * kWidth; i < padded_; i += kWidth) {
        RegisterTile<Operand, kRows> tile;
        tile.clear();
        tile.multiply_add(w_.k_rows + j * w_.qk_row_stride, w_.qk_row_stride, 1,
                          w_.q_transposed + i, kChunkStride, w_.head_dim_qk / kItemDepth);
        tile.each([&](int r, int vector, V& sum) {
          sum *= load<V>(p_.decay.score_weight_transposed + kChunk - 1 - (j + r) + i +
                         vector * kLanes);
        });
        tile.store_row_major(w_.scores_transposed + (j * kChunk + i) / kItemDepth,
                             kChunk / kItemDepth);
      }
    });
  }

  /// Computes the gradients of the scores with i as the depth, [i / kItemDepth][j], up to the
  /// diagonal. Zeros follow to the end of its block.
  void compute_grad_scores() {
    each_tile<Operand>(even_, [&](auto rows, int64_t i) {
      constexpr int kRows = decltype(rows)::value;
      for (int64_t j = 0; j < i + kRows; j += kWidth) {
        RegisterTile<Operand, kRows> tile;
        tile.clear();
        tile.multiply_add(w_.grad_out_rows + i * w_.v_row_stride, w_.v_row_stride, 1,
                          w_.v_transposed + j, kChunkStride, w_.head_dim_v / kItemDepth);
        tile.each([&](int r, int vector, V& sum) {
          sum *= load<V>(p_.decay.score_weight + kChunk - 1 - (i + r) + j + vector * kLanes);
        });
        tile.store_depth_major(w_.grad_scores + i / kItemDepth * kChunkStride + j, kChunkStride);
      }
    });
  }

  /// grad_k^T += R V^T over the columns of a group.
  template <int kRows>
  RETNET_NOINLINE void add_group_to_grad_k(TileRows<kRows>, int64_t i, int64_t j, int64_t group,
                                           int64_t end) {
    RegisterTile<Operand, kRows> tile;
    float* to = w_.grad_k_transposed + i * kChunkStride + j;
    tile.each([&](int r, int vector, V& sum) {
      sum = group == 0 ? V{} : load<V>(to + r * kChunkStride + vector * kLanes);
    });
    for (int64_t column = group; column < end; column += kWidth) {
      tile.multiply_add(
          w_.running_grad_state_rows + (column * w_.head_dim_qk + i * kWidth) / kItemDepth,
          kWidth / kItemDepth, 1, w_.v_transposed + column / kItemDepth * kChunkStride + j,
          kChunkStride, kWidth / kItemDepth);
    }
    tile.each(
        [&](int r, int vector, V& sum) { store(to + r * kChunkStride + vector * kLanes, sum); });
  }

  /// grad_k^T <- weight_j grad_k^T + Q^T grad_scores, with the tokens i >= j only.
  template <int kRows>
  RETNET_NOINLINE void finish_grad_k(TileRows<kRows>, int64_t i, int64_t j) {
    RegisterTile<Operand, kRows> tile;
    float* to = w_.grad_k_transposed + i * kChunkStride + j;
    tile.each([&](int r, int vector, V& sum) {
      sum =
          load<V>(to + r * kChunkStride + vector * kLanes) * load<V>(weight_ + j + vector * kLanes);
    });
    tile.multiply_add(w_.q_depth + j / kItemDepth * w_.qk_depth_stride + i, 1, w_.qk_depth_stride,
                      w_.grad_scores + j / kItemDepth * kChunkStride + j, kChunkStride,
                      (even_ - j) / kItemDepth);
    tile.each(
        [&](int r, int vector, V& sum) { store(to + r * kChunkStride + vector * kLanes, sum); });
  }

  void store_grad_k() {
    transpose<kLanes>(w_.grad_k_transposed, kChunkStride, w_.head_dim_qk, padded_, w_.grad_k_rows,
                      w_.head_dim_qk);
    for (int64_t j = 0; j < length_; ++j) {
      auto* to = static_cast<Scalar*>(p_.grad_k.ptr) + (first_ + j) * p_.grad_k.stride;
      const float* from = w_.grad_k_rows + j * w_.head_dim_qk;
      for (int64_t i = 0; i < p_.head_dim_qk; i += kWidth) {
        store_columns<Operand>(to + i, load<V>(from + i), load<V>(from + i + kLanes),
                               p_.head_dim_qk - i);
      }
    }
  }

  /// grad_v = weight_j K R + scores^T grad_out, with the tokens i >= j only.
  template <int kRows>
  RETNET_NOINLINE void compute_grad_v(TileRows<kRows>, int64_t j, int64_t column,
                                      const Item* grad_out) {
    RegisterTile<Operand, kRows> tile;
    tile.clear();
    tile.multiply_add(w_.k_rows + j * w_.qk_row_stride, w_.qk_row_stride, 1,
                      w_.running_grad_state.block_items(column), kWidth,
                      w_.head_dim_qk / kItemDepth);
    tile.each([&](int r, int, V& sum) { sum *= weight_[j + r]; });
    tile.multiply_add(w_.scores_transposed + (j * kChunk + j) / kItemDepth, kChunk / kItemDepth, 1,
                      grad_out + j / kItemDepth * kWidth, kWidth, (even_ - j) / kItemDepth);
    store_tile(tile, length_ - j,
               static_cast<Scalar*>(p_.grad_v.ptr) + (first_ + j) * p_.grad_v.stride,
               p_.grad_v.stride, column, p_.head_dim_v);
  }

  template <int kRows>
  RETNET_NOINLINE void update_running_grad_state(TileRows<kRows>, int64_t first, int64_t column,
                                                 const Item* grad_out) {
    RegisterTile<Operand, kRows> tile;
    tile.clear();
    tile.multiply_add(w_.q_weighted + first, 1, w_.qk_depth_stride, grad_out, kWidth,
                      even_ / kItemDepth);
    add_decayed_state(tile, w_.running_grad_state.block(column) + first * kWidth,
                      p_.decay.power_minus_one[length_], p_.decay.gamma_is_zero);
    w_.running_grad_state.store(tile, first, column);
    if constexpr (kItemDepth > 1) {
      tile.store_row_major(
          w_.running_grad_state_rows + (column * w_.head_dim_qk + first * kWidth) / kItemDepth,
          kWidth / kItemDepth);
    }
  }

  const RetentionBackwardParams& p_;
  BackwardWorkspace<Operand> w_;
  int64_t first_ = 0, length_ = 0, even_ = 0, padded_ = 0;  // of the chunk
  Prefetcher prefetcher_;                                   // of the previous chunk
  float weight_[kChunk];  // gamma^(L-1-j) of the chunk's tokens, then zeros
};

template <class Operand, class Scalar>
void retention_backward(const RetentionBackwardParams& p, void* workspace) {
  BackwardPass<Operand, Scalar>(p, workspace).run();
}

}  // namespace
}  // namespace retnet::kernels::cpu
