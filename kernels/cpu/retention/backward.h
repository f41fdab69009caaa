// SPDX-License-Identifier: Apache-2.0
//
// The pass that goes backward in time: the gradients of k and v share the adjoint X of the state,
// [inner][outer] in blocks as in retention_readout.h. dk = V X^T reads X as a left factor, item by
// item, and so comes out transposed, [inner][kChunk], in floats; it is turned back on its way out.
// Where bfloat16 pairs are multiplied, X has two copies: pairs along `inner` for dv and along
// `outer` for dk.
//
// The blocks of X are taken in groups, so that X goes through the caches once a chunk: a group's
// part of dk, its columns of dv, its update.
#pragma once

#include <algorithm>

#include "kernels/cpu/gemm/register_tile.h"
#include "kernels/cpu/retention/forward.h"
#include "kernels/cpu/retention/params.h"

namespace retnet::kernels::cpu {
namespace {

template <class Op>
struct UpdateBuffers {
  using Item = typename Op::Item;
  int64_t inner, outer;  // padded to whole blocks
  // In items: of tokens of `inner` and of `outer` channels as rows, of `inner` channels as steps.
  int64_t inner_stride, outer_stride, step_stride;
  Arena arena;
  BlockedState<Op> adjoint;
  Item* adjoint_rows;  // [outer / block][inner][block / kDepth]; floats: the adjoint itself
  Item *k, *grad_out;  // [kChunk] rows of inner_stride, of outer_stride
  Item *q_transposed, *v_transposed;  // [inner or outer / kDepth] rows of kChunkStride
  Item *q, *q_weighted;               // [kChunk / kDepth] rows of step_stride
  Item* grad_out_steps;               // [outer / block][kChunk / kDepth][block]
  Item* scores;                       // the scores' transpose, [j][i / kDepth]
  Item* grad_scores;                  // [i / kDepth] rows of kChunkStride, j
  float *grad_k, *grad_k_rows;        // [inner] rows of kChunkStride, [kChunk] rows of inner

  UpdateBuffers(const UpdateParams& p, void* scratch)
      : inner(round_up(p.inner, kBlock<Op>)),
        outer(round_up(p.outer, kBlock<Op>)),
        inner_stride(inner / Op::kDepth + kLine),
        outer_stride(outer / Op::kDepth + kLine),
        step_stride(inner + kLine),
        arena(scratch),
        adjoint(arena, inner, outer),
        adjoint_rows(Op::kDepth == 1 ? adjoint.steps
                                     : arena.take<Item>(inner * outer / Op::kDepth)),
        k(arena.take<Item>(kChunk * inner_stride)),
        grad_out(arena.take<Item>(kChunk * outer_stride)),
        q_transposed(arena.take<Item>(inner / Op::kDepth * kChunkStride)),
        v_transposed(arena.take<Item>(outer / Op::kDepth * kChunkStride)),
        q(arena.take<Item>(kChunk * step_stride)),
        q_weighted(arena.take<Item>(kChunk / Op::kDepth * step_stride)),
        grad_out_steps(arena.take<Item>(kChunk * outer_stride)),
        scores(arena.take<Item>(kChunk * kChunk / Op::kDepth)),
        grad_scores(arena.take<Item>(kChunk / Op::kDepth * kChunkStride)),
        grad_k(arena.take<float>(inner * kChunkStride)),
        grad_k_rows(arena.take<float>(kChunk * inner)) {}
};

template <class Op>
size_t update_scratch(const UpdateParams& p) {
  return UpdateBuffers<Op>(p, nullptr).arena.bytes();
}

template <class Op, class Scalar>
class Update {
  using Item = typename Op::Item;
  using V = typename Op::V;
  static constexpr int kDepth = Op::kDepth, kLanes = Op::kLanes;
  static constexpr int64_t kWidth = kBlock<Op>;
  static constexpr int64_t kGroup = 64;  // columns: long sums for dk, and a group fits the L2 cache

 public:
  Update(const UpdateParams& p, void* scratch) : p_(p), x_(p, scratch) {}

  void run() {
    read_adjoint();
    first_ = round_up(p_.tokens, kChunk);
    while ((first_ -= kChunk) >= 0) chunk();
    if (p_.grad_initial) {
      x_.adjoint.each(p_.inner, p_.outer, [&](float value, int64_t i, int64_t o) {
        p_.grad_initial[i * p_.grad_initial_inner + o] = value;
      });
    }
  }

 private:
  void read_adjoint() {
    x_.adjoint.read(p_.grad_state, p_.inner, p_.outer, p_.grad_state_inner, p_.grad_state_outer);
    if constexpr (kDepth > 1) {
      for (int64_t col = 0; col < x_.outer; col += kWidth) {
        for (int64_t k = 0; k < x_.inner; ++k) {
          const float* p = x_.adjoint.block(col) + k * kWidth;
          Op::store_row(x_.adjoint_rows + (col * x_.inner + k * kWidth) / kDepth, load<V>(p),
                        load<V>(p + kLanes));
        }
      }
    }
  }

  /// Tokens of the chunk that begins at `first`; none where that is before all tokens.
  Source<Scalar> source(const TokenRows& rows, int64_t cols, int64_t first) const {
    const auto* ptr = first < 0 ? nullptr : static_cast<const Scalar*>(rows.ptr);
    const int64_t length = std::min(kChunk, p_.tokens - first);
    return {ptr ? ptr + first * rows.stride : nullptr, rows.stride, length, cols};
  }
  Source<Scalar> source(const TokenRows& rows, int64_t cols) const {
    return source(rows, cols, first_);
  }

  void chunk() {
    length_ = std::min(kChunk, p_.tokens - first_);
    even_ = round_up(length_, 2);
    padded_ = round_up(length_, kWidth);
    for (int64_t j = 0; j < kChunk; ++j) {
      weight_[j] = j < length_ ? p_.decay.power[length_ - 1 - j] : 0;
    }
    ahead_.start((tiles_of<Op>(x_.inner) + (p_.grad_v ? tiles_of<Op>(even_) : 0)) *
                 (x_.outer / kWidth));
    ahead_.add(source(p_.q, p_.inner, first_ - kChunk));
    if (p_.grad_v) ahead_.add(source(p_.k, p_.inner, first_ - kChunk));
    if (p_.grad_k) ahead_.add(source(p_.v, p_.outer, first_ - kChunk));
    ahead_.add(source(p_.grad_out, p_.outer, first_ - kChunk));
    const auto q = source(p_.q, p_.inner), k = source(p_.k, p_.inner), v = source(p_.v, p_.outer),
               grad_out = source(p_.grad_out, p_.outer);
    const int64_t chunk_block = kChunk / kDepth * kWidth;
    if (p_.grad_v) {
      pack_rows<Op>(k, even_, x_.inner, x_.k, x_.inner_stride);
      // x_.q and x_.grad_out_steps hold rows until they are transposed.
      pack_rows<Op>(q, padded_, x_.inner, x_.q, x_.inner_stride);
      transpose<kLanes>(x_.q, x_.inner_stride, padded_, x_.inner / kDepth, x_.q_transposed,
                        kChunkStride);
      scores();
    }
    if (p_.grad_k) {
      pack_rows<Op>(grad_out, even_, x_.outer, x_.grad_out, x_.outer_stride);
      pack_rows<Op>(v, padded_, x_.outer, x_.grad_out_steps, x_.outer_stride);
      transpose<kLanes>(x_.grad_out_steps, x_.outer_stride, padded_, x_.outer / kDepth,
                        x_.v_transposed, kChunkStride);
      grad_scores();
      pack_steps<Op>(q, even_, x_.inner, nullptr, x_.q, x_.step_stride, x_.inner, 0);
    }
    pack_steps<Op>(q, even_, x_.inner, p_.decay.readout, x_.q_weighted, x_.step_stride, x_.inner,
                   0);
    pack_steps<Op>(grad_out, even_, x_.outer, nullptr, x_.grad_out_steps, kWidth, kWidth,
                   chunk_block);
    for (int64_t group = 0; group < x_.outer; group += kGroup) {
      const int64_t end = std::min(group + kGroup, x_.outer);
      if (p_.grad_k) {
        each_tile<Op>(x_.inner, [&](auto rows, int64_t i) {
          for (int64_t j = 0; j < padded_; j += kWidth) grad_k_of_group(rows, i, j, group, end);
        });
      }
      for (int64_t col = group; col < end; col += kWidth) {
        const Item* steps = x_.grad_out_steps + col / kWidth * chunk_block;
        if (p_.grad_v) {
          each_tile<Op>(even_, [&](auto rows, int64_t j) {
            grad_v(rows, j, col, steps);
            ahead_.fetch();
          });
        }
        each_tile<Op>(x_.inner, [&](auto rows, int64_t i) {
          update(rows, i, col, steps);
          ahead_.fetch();
        });
      }
    }
    if (p_.grad_k) {
      each_tile<Op>(x_.inner, [&](auto rows, int64_t i) {
        for (int64_t j = 0; j < padded_; j += kWidth) finish_grad_k(rows, i, j);
      });
      store_grad_k();
    }
  }

  /// The transposed scores, [j][i], from the diagonal's block on.
  void scores() {
    each_tile<Op>(even_, [&](auto rows, int64_t j) {
      constexpr int kRows = decltype(rows)::value;
      for (int64_t i = j / kWidth * kWidth; i < padded_; i += kWidth) {
        Tile<Op, kRows> tile;
        tile.clear();
        tile.multiply_add(x_.k + j * x_.inner_stride, x_.inner_stride, 1, x_.q_transposed + i,
                          kChunkStride, x_.inner / kDepth);
        tile.each([&](int r, int c, V& sum) {
          sum *= load<V>(p_.decay.column + kChunk - 1 - (j + r) + i + c * kLanes);
        });
        tile.store_rows(x_.scores + (j * kChunk + i) / kDepth, kChunk / kDepth);
      }
    });
  }

  /// The gradient of the scores, steps along i: [i / kDepth][j], and zeros beyond the diagonal to
  /// the end of its block.
  void grad_scores() {
    each_tile<Op>(even_, [&](auto rows, int64_t i) {
      constexpr int kRows = decltype(rows)::value;
      for (int64_t j = 0; j < i + kRows; j += kWidth) {
        Tile<Op, kRows> tile;
        tile.clear();
        tile.multiply_add(x_.grad_out + i * x_.outer_stride, x_.outer_stride, 1,
                          x_.v_transposed + j, kChunkStride, x_.outer / kDepth);
        tile.each([&](int r, int c, V& sum) {
          sum *= load<V>(p_.decay.row + kChunk - 1 - (i + r) + j + c * kLanes);
        });
        tile.store_steps(x_.grad_scores + i / kDepth * kChunkStride + j, kChunkStride);
      }
    });
  }

  /// grad_k^T += X V^T over a group's columns.
  template <int kRows>
  RETNET_NOINLINE void grad_k_of_group(Rows<kRows>, int64_t i, int64_t j, int64_t group,
                                       int64_t end) {
    Tile<Op, kRows> tile;
    float* to = x_.grad_k + i * kChunkStride + j;
    tile.each([&](int r, int c, V& sum) {
      sum = group == 0 ? V{} : load<V>(to + r * kChunkStride + c * kLanes);
    });
    for (int64_t col = group; col < end; col += kWidth) {
      tile.multiply_add(x_.adjoint_rows + (col * x_.inner + i * kWidth) / kDepth, kWidth / kDepth,
                        1, x_.v_transposed + col / kDepth * kChunkStride + j, kChunkStride,
                        kWidth / kDepth);
    }
    tile.each([&](int r, int c, V& sum) { store(to + r * kChunkStride + c * kLanes, sum); });
  }

  /// grad_k^T <- weight_j grad_k^T + Q^T (grad of scores): rows i >= j alone.
  template <int kRows>
  RETNET_NOINLINE void finish_grad_k(Rows<kRows>, int64_t i, int64_t j) {
    Tile<Op, kRows> tile;
    float* to = x_.grad_k + i * kChunkStride + j;
    tile.each([&](int r, int c, V& sum) {
      sum = load<V>(to + r * kChunkStride + c * kLanes) * load<V>(weight_ + j + c * kLanes);
    });
    tile.multiply_add(x_.q + j / kDepth * x_.step_stride + i, 1, x_.step_stride,
                      x_.grad_scores + j / kDepth * kChunkStride + j, kChunkStride,
                      (even_ - j) / kDepth);
    tile.each([&](int r, int c, V& sum) { store(to + r * kChunkStride + c * kLanes, sum); });
  }

  void store_grad_k() {
    transpose<kLanes>(x_.grad_k, kChunkStride, x_.inner, padded_, x_.grad_k_rows, x_.inner);
    for (int64_t j = 0; j < length_; ++j) {
      auto* to = static_cast<Scalar*>(p_.grad_k) + (first_ + j) * p_.grad_k_stride;
      const float* from = x_.grad_k_rows + j * x_.inner;
      for (int64_t i = 0; i < p_.inner; i += kWidth) {
        store_block<Op>(to + i, load<V>(from + i), load<V>(from + i + kLanes), p_.inner - i);
      }
    }
  }

  /// grad_v = weight_j K X + (scores)^T grad_out: rows i >= j alone.
  template <int kRows>
  RETNET_NOINLINE void grad_v(Rows<kRows>, int64_t j, int64_t col, const Item* steps) {
    Tile<Op, kRows> tile;
    tile.clear();
    tile.multiply_add(x_.k + j * x_.inner_stride, x_.inner_stride, 1, x_.adjoint.block_steps(col),
                      kWidth, x_.inner / kDepth);
    tile.each([&](int r, int, V& sum) { sum *= weight_[j + r]; });
    tile.multiply_add(x_.scores + (j * kChunk + j) / kDepth, kChunk / kDepth, 1,
                      steps + j / kDepth * kWidth, kWidth, (even_ - j) / kDepth);
    store_output(tile, length_ - j,
                 static_cast<Scalar*>(p_.grad_v) + (first_ + j) * p_.grad_v_stride,
                 p_.grad_v_stride, col, p_.outer);
  }

  template <int kRows>
  RETNET_NOINLINE void update(Rows<kRows>, int64_t i, int64_t col, const Item* steps) {
    Tile<Op, kRows> tile;
    tile.clear();
    tile.multiply_add(x_.q_weighted + i, 1, x_.step_stride, steps, kWidth, even_ / kDepth);
    add_decayed(tile, x_.adjoint.block(col) + i * kWidth, p_.decay.change[length_],
                p_.decay.is_zero);
    x_.adjoint.store(tile, i, col);
    if constexpr (kDepth > 1) {
      tile.store_rows(x_.adjoint_rows + (col * x_.inner + i * kWidth) / kDepth, kWidth / kDepth);
    }
  }

  const UpdateParams& p_;
  UpdateBuffers<Op> x_;
  int64_t first_ = 0, length_ = 0, even_ = 0, padded_ = 0;  // of the chunk
  Ahead ahead_;                                             // the chunk before
  float weight_[kChunk];  // gamma^(L-1-j) of the chunk's tokens, then zeros
};

template <class Op, class Scalar>
void update(const UpdateParams& p, void* scratch) {
  Update<Op, Scalar>(p, scratch).run();
}

}  // namespace
}  // namespace retnet::kernels::cpu
