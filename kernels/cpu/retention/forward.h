// SPDX-License-Identifier: Apache-2.0
//
// The pass forward in time of `RetentionForwardParams`. The names are those of the retention op.
// For grad_q, q = grad_out, k = v, v = k, grad_out = q, and the states are transposed.
//
// For each chunk of L tokens it
//   1. packs q, k and v,
//   2. computes the scores, scale gamma^(i-j) (q_i . k_j),
//   3. for each block of columns computes out and then the state, while the block is in cache.
// The state lies in blocks, [head_dim_v / block][head_dim_qk][block], in floats. If the operand is
// a pair of bfloat16, a copy in pairs along head_dim_qk stands beside it, written from the
// registers that hold the update.
//
// What a chunk adds is summed apart and added to the state once. This rounds once a chunk. A sum
// that continues from the state would round 64 times at the magnitude of the state.
//
// Columns do not mix. A slice of columns has the same bits as within the whole.
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
struct ForwardWorkspace {
  using Item = typename Operand::Item;
  static constexpr int kItemDepth = Operand::kItemDepth;
  int64_t head_dim_qk, head_dim_v;   // padded to whole tiles
  int64_t row_stride, depth_stride;  // in items, of tokens as rows and of tokens as depth
  Workspace workspace;
  BlockedState<Operand> state;
  Item* q_rows;        // [kChunk] rows of row_stride
  Item* k_transposed;  // [head_dim_qk / kItemDepth] rows of kChunkStride
  Item* k_weighted;    // [kChunk / kItemDepth] rows of depth_stride; before, k's [kChunk] rows
  Item* v_blocks;      // [head_dim_v / block][kChunk / kItemDepth][block]
  Item* scores;        // [kChunk][kChunk / kItemDepth]
  float* weight;       // [kChunk] of a chunk's tokens in the next state
  // For the derivative with respect to log_decay:
  BlockedState<Operand> state_derivative;
  Item *k_derivative, *score_derivative;  // like k_weighted and scores

  ForwardWorkspace(const RetentionForwardParams& p, void* memory)
      : head_dim_qk(round_up(p.head_dim_qk, kTileColumns<Operand>)),
        head_dim_v(round_up(p.head_dim_v, kTileColumns<Operand>)),
        row_stride(padded_stride(head_dim_qk / kItemDepth)),
        depth_stride(padded_stride(head_dim_qk)),
        workspace(memory),
        state(workspace, head_dim_qk, head_dim_v),
        q_rows(workspace.take<Item>(kChunk * row_stride)),
        k_transposed(workspace.take<Item>(head_dim_qk / kItemDepth * kChunkStride)),
        k_weighted(workspace.take<Item>(kChunk * depth_stride)),
        v_blocks(workspace.take<Item>(kChunk / kItemDepth * head_dim_v)),
        scores(workspace.take<Item>(kChunk * kChunk / kItemDepth)),
        weight(workspace.take<float>(kChunk)),
        state_derivative(workspace, p.grad_log_decay ? head_dim_qk : 0,
                         p.grad_log_decay ? head_dim_v : 0),
        k_derivative(
            workspace.take<Item>(p.grad_log_decay ? kChunk / kItemDepth * depth_stride : 0)),
        score_derivative(
            workspace.take<Item>(p.grad_log_decay ? kChunk * kChunk / kItemDepth : 0)) {}
};

template <class Operand>
size_t retention_forward_workspace_bytes(const RetentionForwardParams& p) {
  return ForwardWorkspace<Operand>(p, nullptr).workspace.bytes();
}

template <class Operand, class Scalar>
class ForwardPass {
  using Item = typename Operand::Item;
  using V = typename Operand::V;
  static constexpr int kItemDepth = Operand::kItemDepth, kLanes = Operand::kLanes;
  static constexpr int64_t kWidth = kTileColumns<Operand>;

 public:
  ForwardPass(const RetentionForwardParams& p, void* memory) : p_(p), w_(p, memory) {}

  void run() {
    const bool drops_initial_state = p_.decay.gamma_is_zero && p_.tokens > 0;
    w_.state.read(drops_initial_state ? StateView{} : p_.initial_state, p_.head_dim_qk,
                  p_.head_dim_v);
    if (p_.grad_log_decay) w_.state_derivative.read({}, 0, 0);
    for (first_ = 0; first_ < p_.tokens; first_ += kChunk) chunk();
    if (p_.final_state.ptr) w_.state.write(p_.final_state, p_.head_dim_qk, p_.head_dim_v);
    if (p_.grad_log_decay) store_grad_log_decay();
  }

 private:
  OperandView<Scalar> view(const TokenView& x, int64_t columns) const {
    return chunk_view<Scalar>(x, columns, first_, p_.tokens);
  }
  OperandView<Scalar> next_view(const TokenView& x, int64_t columns) const {
    return chunk_view<Scalar>(x, columns, first_ + kChunk, p_.tokens);
  }

  void chunk() {
    length_ = std::min(kChunk, p_.tokens - first_);
    even_ = round_up(length_, 2);
    const bool uses_q = (p_.out.ptr || p_.grad_log_decay) && p_.q.ptr;
    prefetcher_.start(
        (num_tiles<Operand>(w_.head_dim_qk) + (uses_q ? num_tiles<Operand>(even_) : 0)) *
        (w_.head_dim_v / kWidth));
    if (uses_q) prefetcher_.add(next_view(p_.q, p_.head_dim_qk));
    prefetcher_.add(next_view(p_.k, p_.head_dim_qk));
    prefetcher_.add(next_view(p_.v, p_.head_dim_v));
    if (uses_q) {
      const int64_t padded = round_up(length_, kWidth);
      pack_row_major<Operand>(view(p_.q, p_.head_dim_qk), even_, w_.head_dim_qk, w_.q_rows,
                              w_.row_stride);
      // k_weighted holds the rows of k until they are transposed.
      pack_row_major<Operand>(view(p_.k, p_.head_dim_qk), padded, w_.head_dim_qk, w_.k_weighted,
                              w_.row_stride);
      transpose<kLanes>(w_.k_weighted, w_.row_stride, padded, w_.head_dim_qk / kItemDepth,
                        w_.k_transposed, kChunkStride);
      compute_scores();
    }
    pack_weighted_k(p_.decay.power, w_.k_weighted);
    if (p_.grad_log_decay) pack_weighted_k(p_.decay.power_derivative, w_.k_derivative);
    pack_depth_major<Operand>(view(p_.v, p_.head_dim_v), even_, w_.head_dim_v, nullptr, w_.v_blocks,
                              kWidth, kWidth, kChunk / kItemDepth * kWidth);
    for (int64_t column = 0; column < w_.head_dim_v; column += kWidth) {
      const Item* v = w_.v_blocks + column / kWidth * (kChunk / kItemDepth * kWidth);
      if (uses_q) {
        each_tile<Operand>(even_, [&](auto rows, int64_t i) {
          compute_out(rows, i, column, v);
          prefetcher_.fetch();
        });
      }
      if (p_.grad_log_decay) {  // reads the state as it was
        each_tile<Operand>(w_.head_dim_qk, [&](auto rows, int64_t first) {
          update_state_derivative(rows, first, column, v);
        });
      }
      each_tile<Operand>(w_.head_dim_qk, [&](auto rows, int64_t first) {
        update_state(rows, first, column, v);
        prefetcher_.fetch();
      });
    }
  }

  void pack_weighted_k(const float* power, Item* to) {
    for (int64_t j = 0; j < length_; ++j) w_.weight[j] = power[length_ - 1 - j];
    pack_depth_major<Operand>(view(p_.k, p_.head_dim_qk), even_, w_.head_dim_qk, w_.weight, to,
                              w_.depth_stride, w_.head_dim_qk, 0);
  }

  /// Computes the scores up to the diagonal. Zeros follow to the end of its block.
  void compute_scores() {
    each_tile<Operand>(even_, [&](auto rows, int64_t i) {
      constexpr int kRows = decltype(rows)::value;
      for (int64_t j = 0; j < i + kRows; j += kWidth) {
        RegisterTile<Operand, kRows> tile;
        tile.clear();
        tile.multiply_add(w_.q_rows + i * w_.row_stride, w_.row_stride, 1, w_.k_transposed + j,
                          kChunkStride, w_.head_dim_qk / kItemDepth);
        const auto store_weighted = [&](const float* weight, Item* to) {
          auto out = tile;
          out.each([&](int r, int vector, V& sum) {
            sum *= load<V>(weight + kChunk - 1 - (i + r) + j + vector * kLanes);
          });
          out.store_row_major(to + (i * kChunk + j) / kItemDepth, kChunk / kItemDepth);
        };
        store_weighted(p_.decay.score_weight, w_.scores);
        if (p_.grad_log_decay) {
          store_weighted(p_.decay.score_weight_derivative, w_.score_derivative);
        }
      }
    });
  }

  template <int kRows>
  RETNET_NOINLINE void compute_out(TileRows<kRows> rows, int64_t i, int64_t column, const Item* v) {
    RegisterTile<Operand, kRows> tile;
    tile.clear();
    multiply_q_state(tile, i, w_.state.block_items(column));
    if (p_.grad_log_decay) {
      tile.each(
          [&](int r, int vector, V& sum) { store(q_state_ + r * kWidth + vector * kLanes, sum); });
      add_grad_log_decay(rows, i, column, v);
    }
    if (!p_.out.ptr) return;
    tile.each([&](int r, int, V& sum) { sum *= p_.decay.state_weight[i + r]; });
    multiply_scores_v(tile, i, w_.scores, v);
    store_tile(tile, length_ - i, static_cast<Scalar*>(p_.out.ptr) + (first_ + i) * p_.out.stride,
               p_.out.stride, column, p_.head_dim_v);
  }

  /// grad_log_decay += grad_out_i . dout_i, where S' is the derivative of S and
  ///     dout_i = scale gamma^(i+1) ((i+1) q_i S + q_i S') + sum_j (i-j) scores_ij v_j.
  /// q_state_ holds q_i S.
  template <int kRows>
  RETNET_NOINLINE void add_grad_log_decay(TileRows<kRows>, int64_t i, int64_t column,
                                          const Item* v) {
    RegisterTile<Operand, kRows> tile;
    tile.each([&](int r, int vector, V& sum) {
      sum = load<V>(q_state_ + r * kWidth + vector * kLanes) * static_cast<float>(i + r + 1);
    });
    multiply_q_state(tile, i, w_.state_derivative.block_items(column));
    tile.each([&](int r, int, V& sum) { sum *= p_.decay.state_weight[i + r]; });
    multiply_scores_v(tile, i, w_.score_derivative, v);
    const auto grad_out = view(p_.grad_out, p_.head_dim_v);
    V products = {};
    tile.each([&](int r, int vector, V& sum) {
      products += sum * grad_out.template floats<kLanes>(i + r, column + vector * kLanes);
    });
    for (int l = 0; l < kLanes; ++l) grad_log_decay_ += static_cast<double>(products[l]);
  }

  template <int kRows>
  RETNET_INLINE void multiply_q_state(RegisterTile<Operand, kRows>& tile, int64_t i,
                                      const Item* state) {
    tile.multiply_add(w_.q_rows + i * w_.row_stride, w_.row_stride, 1, state, kWidth,
                      w_.head_dim_qk / kItemDepth);
  }

  /// tile += scores v. The sum stops at the diagonal.
  template <int kRows>
  RETNET_INLINE void multiply_scores_v(RegisterTile<Operand, kRows>& tile, int64_t i,
                                       const Item* scores, const Item* v) {
    tile.multiply_add(scores + i * kChunk / kItemDepth, kChunk / kItemDepth, 1, v, kWidth,
                      (i + kRows) / kItemDepth);
  }

  /// S <- gamma^L S + sum_j gamma^(L-1-j) k_j^T v_j, rows first .. of a block.
  template <int kRows>
  RETNET_NOINLINE void update_state(TileRows<kRows>, int64_t first, int64_t column, const Item* v) {
    RegisterTile<Operand, kRows> tile;
    tile.clear();
    tile.multiply_add(w_.k_weighted + first, 1, w_.depth_stride, v, kWidth, even_ / kItemDepth);
    add_decayed_state(tile, w_.state.block(column) + first * kWidth,
                      p_.decay.power_minus_one[length_], p_.decay.gamma_is_zero);
    w_.state.store(tile, first, column);
  }

  /// S' <- gamma^L (S' + L S) + sum_j (L-1-j) gamma^(L-1-j) k_j^T v_j
  template <int kRows>
  RETNET_NOINLINE void update_state_derivative(TileRows<kRows>, int64_t first, int64_t column,
                                               const Item* v) {
    RegisterTile<Operand, kRows> tile;
    tile.clear();
    tile.multiply_add(w_.k_derivative + first, 1, w_.depth_stride, v, kWidth, even_ / kItemDepth);
    const float weight = p_.decay.power_derivative[length_];
    const float* state = w_.state.block(column) + first * kWidth;
    tile.each([&](int r, int vector, V& sum) {
      sum = load<V>(state + r * kWidth + vector * kLanes) * weight + sum;
    });
    add_decayed_state(tile, w_.state_derivative.block(column) + first * kWidth,
                      p_.decay.power_minus_one[length_], p_.decay.gamma_is_zero);
    w_.state_derivative.store(tile, first, column);
  }

  void store_grad_log_decay() {
    const auto& grad = p_.grad_final_state;
    if (grad.ptr) {
      w_.state_derivative.each(
          p_.head_dim_qk, p_.head_dim_v, [&](float value, int64_t r, int64_t c) {
            grad_log_decay_ +=
                static_cast<double>(value) *
                static_cast<double>(grad.ptr[r * grad.row_stride + c * grad.column_stride]);
          });
    }
    *p_.grad_log_decay = grad_log_decay_;
  }

  const RetentionForwardParams& p_;
  ForwardWorkspace<Operand> w_;
  int64_t first_ = 0, length_ = 0, even_ = 0;  // of the chunk: first token, tokens, rounded up
  Prefetcher prefetcher_;                      // of the next chunk
  double grad_log_decay_ = 0;
  float q_state_[Operand::Isa::kTileRows * kWidth];
};

template <class Operand, class Scalar>
void retention_forward(const RetentionForwardParams& p, void* workspace) {
  ForwardPass<Operand, Scalar>(p, workspace).run();
}

}  // namespace
}  // namespace retnet::kernels::cpu
