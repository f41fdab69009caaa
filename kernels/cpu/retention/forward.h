// SPDX-License-Identifier: Apache-2.0
//
// The pass that goes forward in time. Per chunk of L tokens: pack a, b and c; the scores
// P = scale gamma^(i-j) (a_i . b_j); then, for each block of columns, y and the state while that
// block of the state is hot. The state is kept in blocks, [outer / block][inner][block], in floats;
// where bfloat16 pairs are multiplied, a copy in pairs along `inner` stands beside it, written from
// the registers that hold the update.
//
// The sum over a chunk is formed apart and added to the state once: one rounding a chunk, where
// continuing from the state in the same sum would round 64 times at the state's magnitude.
//
// Columns do not mix: a slice of the columns alone gives the same bits as within the whole.
#pragma once

#include <algorithm>

#include "kernels/cpu/gemm/register_tile.h"
#include "kernels/cpu/retention/params.h"

namespace retnet::kernels::cpu {
namespace {

/// A state [inner][outer] in blocks of columns, with its copy as steps of a product.
template <class Op>
struct BlockedState {
  using Item = typename Op::Item;
  static constexpr int64_t kWidth = kBlock<Op>;
  int64_t inner, outer;  // padded
  float* values;         // [outer / kWidth][inner][kWidth]
  Item* steps;           // [outer / kWidth][inner / kDepth][kWidth]; floats: the values themselves

  BlockedState(Arena& arena, int64_t inner_, int64_t outer_)
      : inner(inner_), outer(outer_), values(arena.take<float>(inner * outer)) {
    if constexpr (Op::kDepth == 1) {
      steps = values;
    } else {
      steps = arena.take<Item>(inner * outer / Op::kDepth);
    }
  }
  float* block(int64_t col) const { return values + col * inner; }
  const Item* block_steps(int64_t col) const { return steps + col * inner / Op::kDepth; }

  /// Rows first .. of the block of columns `col`.
  template <int kRows>
  RETNET_INLINE void store(Tile<Op, kRows>& tile, int64_t first, int64_t col) const {
    float* p = block(col) + first * kWidth;
    tile.each([&](int r, int c, const typename Op::V& sum) {
      cpu::store(p + r * kWidth + c * Op::kLanes, sum);
    });
    if constexpr (Op::kDepth > 1) {
      tile.store_steps(steps + (col * inner + first * kWidth) / Op::kDepth, kWidth);
    }
  }

  /// From x [rows, cols] (null: zeros), padded with zeros.
  void read(const float* x, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride) {
    for (int64_t col = 0; col < outer; col += kWidth) {
      for (int64_t first = 0; first < inner; first += 2) {
        float buffer[2][kWidth] = {};
        const int64_t width = std::min(kWidth, cols - col);
        for (int64_t r = 0; x != nullptr && r < std::min<int64_t>(2, rows - first); ++r) {
          const float* p = x + (first + r) * row_stride + col * col_stride;
          for (int64_t c = 0; c < width; ++c) buffer[r][c] = p[c * col_stride];
        }
        Tile<Op, 2> tile;
        tile.each([&](int r, int c, auto& sum) {
          sum = load<typename Op::V>(&buffer[r][c * Op::kLanes]);
        });
        store(tile, first, col);
      }
    }
  }

  /// f(value, row, col) over [rows, cols], block by block.
  template <class Function>
  void each(int64_t rows, int64_t cols, const Function& f) const {
    for (int64_t col = 0; col < cols; col += kWidth) {
      const int64_t width = std::min(kWidth, cols - col);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t c = 0; c < width; ++c) f(block(col)[r * kWidth + c], r, col + c);
      }
    }
  }
};

/// sum <- S + change S + sum: the decayed state of rows first .. and what the chunk adds.
template <class Op, int kRows>
RETNET_INLINE void add_decayed(Tile<Op, kRows>& tile, const float* state, float change,
                               bool is_zero) {
  if (is_zero) return;
  tile.each([&](int r, int c, auto& sum) {
    const auto old = load<typename Op::V>(state + r * kBlock<Op> + c * Op::kLanes);
    sum += old * change + old;
  });
}

template <class Op>
struct ReadoutBuffers {
  using Item = typename Op::Item;
  int64_t inner, outer;             // padded to whole blocks
  int64_t row_stride, step_stride;  // in items, of tokens as rows and as steps
  Arena arena;
  BlockedState<Op> state;
  Item* a;             // [kChunk] rows of row_stride
  Item* b_transposed;  // [inner / kDepth] rows of kChunkStride
  Item* b;             // [kChunk / kDepth] rows of step_stride
  Item *c, *scores;    // [outer / block][kChunk / kDepth][block], [kChunk][kChunk / kDepth]
  float* weight;       // [kChunk] of a chunk's tokens in the next state
  // For the derivative:
  BlockedState<Op> state_slope;
  Item *b_slope, *scores_slope;

  ReadoutBuffers(const ReadoutParams& p, void* scratch)
      : inner(round_up(p.inner, kBlock<Op>)),
        outer(round_up(p.outer, kBlock<Op>)),
        row_stride(inner / Op::kDepth + kLine),
        step_stride(inner + kLine),
        arena(scratch),
        state(arena, inner, outer),
        a(arena.take<Item>(kChunk * row_stride)),
        b_transposed(arena.take<Item>(inner / Op::kDepth * kChunkStride)),
        b(arena.take<Item>(kChunk * step_stride)),
        c(arena.take<Item>(kChunk / Op::kDepth * outer)),
        scores(arena.take<Item>(kChunk * kChunk / Op::kDepth)),
        weight(arena.take<float>(kChunk)),
        state_slope(arena, p.slope ? inner : 0, p.slope ? outer : 0),
        b_slope(arena.take<Item>(p.slope ? kChunk / Op::kDepth * step_stride : 0)),
        scores_slope(arena.take<Item>(p.slope ? kChunk * kChunk / Op::kDepth : 0)) {}
};

template <class Op>
size_t readout_scratch(const ReadoutParams& p) {
  return ReadoutBuffers<Op>(p, nullptr).arena.bytes();
}

template <class Op, class Scalar>
class Readout {
  using Item = typename Op::Item;
  using V = typename Op::V;
  static constexpr int kDepth = Op::kDepth, kLanes = Op::kLanes;
  static constexpr int64_t kWidth = kBlock<Op>;

 public:
  Readout(const ReadoutParams& p, void* scratch) : p_(p), x_(p, scratch) {}

  void run() {
    const bool forgets = p_.decay.is_zero && p_.tokens > 0;
    x_.state.read(forgets ? nullptr : p_.initial, p_.inner, p_.outer, p_.initial_inner,
                  p_.initial_outer);
    if (p_.slope) x_.state_slope.read(nullptr, 0, 0, 0, 0);
    for (first_ = 0; first_ < p_.tokens; first_ += kChunk) chunk();
    if (p_.final_state) {
      x_.state.each(p_.inner, p_.outer, [&](float value, int64_t i, int64_t o) {
        p_.final_state[i * p_.final_inner + o * p_.final_outer] = value;
      });
    }
    if (p_.slope) finish_slope();
  }

 private:
  /// Tokens of the chunk that begins at `first`.
  Source<Scalar> source(const TokenRows& rows, int64_t cols, int64_t first) const {
    const auto* ptr = static_cast<const Scalar*>(rows.ptr);
    const int64_t length = std::min(kChunk, p_.tokens - first);
    return {ptr ? ptr + first * rows.stride : nullptr, rows.stride, length, cols};
  }
  Source<Scalar> source(const TokenRows& rows, int64_t cols) const {
    return source(rows, cols, first_);
  }

  void chunk() {
    length_ = std::min(kChunk, p_.tokens - first_);
    even_ = round_up(length_, 2);
    const bool reads = (p_.y || p_.slope) && p_.a.ptr;
    ahead_.start((tiles_of<Op>(x_.inner) + (reads ? tiles_of<Op>(even_) : 0)) *
                 (x_.outer / kWidth));
    if (reads) ahead_.add(source(p_.a, p_.inner, first_ + kChunk));
    ahead_.add(source(p_.b, p_.inner, first_ + kChunk));
    ahead_.add(source(p_.c, p_.outer, first_ + kChunk));
    if (reads) {
      const int64_t padded = round_up(length_, kWidth);
      pack_rows<Op>(source(p_.a, p_.inner), even_, x_.inner, x_.a, x_.row_stride);
      // x_.b holds b's rows until they are transposed.
      pack_rows<Op>(source(p_.b, p_.inner), padded, x_.inner, x_.b, x_.row_stride);
      transpose<kLanes>(x_.b, x_.row_stride, padded, x_.inner / kDepth, x_.b_transposed,
                        kChunkStride);
      scores();
    }
    pack_weighted_b(p_.decay.power, x_.b);
    if (p_.slope) pack_weighted_b(p_.decay.power_slope, x_.b_slope);
    pack_steps<Op>(source(p_.c, p_.outer), even_, x_.outer, nullptr, x_.c, kWidth, kWidth,
                   kChunk / kDepth * kWidth);
    for (int64_t col = 0; col < x_.outer; col += kWidth) {
      const Item* c = x_.c + col / kWidth * (kChunk / kDepth * kWidth);
      if (reads) {
        each_tile<Op>(even_, [&](auto rows, int64_t i) {
          read_out(rows, i, col, c);
          ahead_.fetch();
        });
      }
      if (p_.slope) {  // reads the state as it was
        each_tile<Op>(x_.inner, [&](auto rows, int64_t k) { update_slope(rows, k, col, c); });
      }
      each_tile<Op>(x_.inner, [&](auto rows, int64_t k) {
        update(rows, k, col, c);
        ahead_.fetch();
      });
    }
  }

  void pack_weighted_b(const float* power, Item* to) {
    for (int64_t j = 0; j < length_; ++j) x_.weight[j] = power[length_ - 1 - j];
    pack_steps<Op>(source(p_.b, p_.inner), even_, x_.inner, x_.weight, to, x_.step_stride, x_.inner,
                   0);
  }

  /// The scores up to the diagonal, and zeros to the end of its block.
  void scores() {
    each_tile<Op>(even_, [&](auto rows, int64_t i) {
      constexpr int kRows = decltype(rows)::value;
      for (int64_t j = 0; j < i + kRows; j += kWidth) {
        Tile<Op, kRows> tile;
        tile.clear();
        tile.multiply_add(x_.a + i * x_.row_stride, x_.row_stride, 1, x_.b_transposed + j,
                          kChunkStride, x_.inner / kDepth);
        const auto weighted = [&](const float* table, Item* to) {
          auto out = tile;
          out.each([&](int r, int c, V& sum) {
            sum *= load<V>(table + kChunk - 1 - (i + r) + j + c * kLanes);
          });
          out.store_rows(to + (i * kChunk + j) / kDepth, kChunk / kDepth);
        };
        weighted(p_.decay.row, x_.scores);
        if (p_.slope) weighted(p_.decay.row_slope, x_.scores_slope);
      }
    });
  }

  template <int kRows>
  RETNET_NOINLINE void read_out(Rows<kRows> rows, int64_t i, int64_t col, const Item* c) {
    Tile<Op, kRows> tile;
    tile.clear();
    multiply_state(tile, i, x_.state.block_steps(col));
    if (p_.slope) {
      tile.each([&](int r, int v, V& sum) { store(raw_ + r * kWidth + v * kLanes, sum); });
      read_slope(rows, i, col, c);
    }
    if (!p_.y) return;
    tile.each([&](int r, int, V& sum) { sum *= p_.decay.readout[i + r]; });
    multiply_scores(tile, i, x_.scores, c);
    store_output(tile, length_ - i, static_cast<Scalar*>(p_.y) + (first_ + i) * p_.y_stride,
                 p_.y_stride, col, p_.outer);
  }

  /// slope += q_i . dy_i, with dy_i = scale gamma^(i+1) ((i+1) a_i S + a_i S') + sum (i-j) P_ij c_j;
  /// raw_ holds a_i S.
  template <int kRows>
  RETNET_NOINLINE void read_slope(Rows<kRows>, int64_t i, int64_t col, const Item* c) {
    Tile<Op, kRows> tile;
    tile.each([&](int r, int v, V& sum) {
      sum = load<V>(raw_ + r * kWidth + v * kLanes) * static_cast<float>(i + r + 1);
    });
    multiply_state(tile, i, x_.state_slope.block_steps(col));
    tile.each([&](int r, int, V& sum) { sum *= p_.decay.readout[i + r]; });
    multiply_scores(tile, i, x_.scores_slope, c);
    const auto q = source(p_.q, p_.outer);
    V products = {};
    tile.each([&](int r, int v, V& sum) {
      products += sum * q.template vector<kLanes>(i + r, col + v * kLanes);
    });
    for (int l = 0; l < kLanes; ++l) slope_ += static_cast<double>(products[l]);
  }

  template <int kRows>
  RETNET_INLINE void multiply_state(Tile<Op, kRows>& tile, int64_t i, const Item* steps) {
    tile.multiply_add(x_.a + i * x_.row_stride, x_.row_stride, 1, steps, kWidth, x_.inner / kDepth);
  }

  /// Stops at the diagonal.
  template <int kRows>
  RETNET_INLINE void multiply_scores(Tile<Op, kRows>& tile, int64_t i, const Item* scores,
                                     const Item* c) {
    tile.multiply_add(scores + i * kChunk / kDepth, kChunk / kDepth, 1, c, kWidth,
                      (i + kRows) / kDepth);
  }

  template <int kRows>
  RETNET_NOINLINE void update(Rows<kRows>, int64_t k, int64_t col, const Item* c) {
    Tile<Op, kRows> tile;
    tile.clear();
    tile.multiply_add(x_.b + k, 1, x_.step_stride, c, kWidth, even_ / kDepth);
    add_decayed(tile, x_.state.block(col) + k * kWidth, p_.decay.change[length_], p_.decay.is_zero);
    x_.state.store(tile, k, col);
  }

  /// S' <- gamma^L (S' + L S) + sum_j (L-1-j) gamma^(L-1-j) b_j c_j
  template <int kRows>
  RETNET_NOINLINE void update_slope(Rows<kRows>, int64_t k, int64_t col, const Item* c) {
    Tile<Op, kRows> tile;
    tile.clear();
    tile.multiply_add(x_.b_slope + k, 1, x_.step_stride, c, kWidth, even_ / kDepth);
    const float weight = p_.decay.power_slope[length_];
    const float* state = x_.state.block(col) + k * kWidth;
    tile.each([&](int r, int v, V& sum) {
      sum = load<V>(state + r * kWidth + v * kLanes) * weight + sum;
    });
    add_decayed(tile, x_.state_slope.block(col) + k * kWidth, p_.decay.change[length_],
                p_.decay.is_zero);
    x_.state_slope.store(tile, k, col);
  }

  void finish_slope() {
    if (p_.grad_state) {
      x_.state_slope.each(p_.inner, p_.outer, [&](float value, int64_t i, int64_t o) {
        slope_ +=
            static_cast<double>(value) *
            static_cast<double>(p_.grad_state[i * p_.grad_state_inner + o * p_.grad_state_outer]);
      });
    }
    *p_.slope = slope_;
  }

  const ReadoutParams& p_;
  ReadoutBuffers<Op> x_;
  int64_t first_ = 0, length_ = 0, even_ = 0;  // of the chunk: first token, tokens, rounded up
  Ahead ahead_;                                // the chunk after
  double slope_ = 0;
  float raw_[Op::Isa::kTileRows * kWidth];
};

template <class Op, class Scalar>
void readout(const ReadoutParams& p, void* scratch) {
  Readout<Op, Scalar>(p, scratch).run();
}

}  // namespace
}  // namespace retnet::kernels::cpu
