// SPDX-License-Identifier: Apache-2.0
//
// What the chunkwise kernels are made of: a register tile, and packing of tokens for it.
#pragma once

#include "kernels/cpu/gemm/operand.h"
#include "kernels/cpu/retention/params.h"

namespace retnet::kernels::cpu {
namespace {

/// Columns of a register tile: two vectors.
template <class Op>
constexpr int64_t kBlock = 2 * Op::kLanes;

/// 32-bit items in a cache line. Rows of packed tokens are one line longer than their channels:
/// rows a power of two apart fall into a few sets of the L1 cache, and evict each other.
constexpr int64_t kLine = 16;
constexpr int64_t kChunkStride = kChunk + kLine;

inline constexpr int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

template <class Op, int kRows>
struct Tile {
  using V = typename Op::V;
  V sum[kRows][2];

  RETNET_INLINE void clear() {
    each([](int, int, V& x) { x = V{}; });
  }

  /// f(row, vector, sum). By a fold and not by a loop, as everywhere here: with constant indices
  /// the sums stay in registers.
  template <class Function>
  RETNET_INLINE void each(const Function& f) {
    each(f, std::make_integer_sequence<int, 2 * kRows>{});
  }

  /// sum += A B over `steps` items. A is broadcast item by item, so that A and its transpose cost
  /// the same: item (r, s) at a[r * a_row + s * a_step]. Step s of B is at b + s * b_step.
  RETNET_INLINE void multiply_add(const typename Op::Item* a, int64_t a_row, int64_t a_step,
                                  const typename Op::Item* b, int64_t b_step, int64_t steps) {
    for (int64_t s = 0; s < steps; ++s) {
      step(a, a_row, Op::load_items(b), Op::load_items(b + Op::kLanes),
           std::make_integer_sequence<int, kRows>{});
      a += a_step;
      b += b_step;
    }
  }

  /// The rows as steps of a later product: item row `i` holds rows i kDepth .. of the tile.
  RETNET_INLINE void store_steps(typename Op::Item* p, int64_t stride) const {
    store_steps(p, stride, std::make_integer_sequence<int, 2 * kRows / Op::kDepth>{});
  }

  /// The rows as rows of a left factor; stride in items.
  RETNET_INLINE void store_rows(typename Op::Item* p, int64_t stride) {
    each_row([&](int r, const V& x, const V& y) { Op::store_row(p + r * stride, x, y); });
  }

  /// f(row, its first half, its second half)
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
  RETNET_INLINE void step(const typename Op::Item* a, int64_t a_row, Items b0, Items b1,
                          std::integer_sequence<int, r...>) {
    const auto row = [&](auto x, V& sum0, V& sum1) {
      sum0 = Op::multiply_add(x, b0, sum0);
      sum1 = Op::multiply_add(x, b1, sum1);
    };
    (row(a[r * a_row], sum[r][0], sum[r][1]), ...);
  }
  template <int... i>
  RETNET_INLINE void store_steps(typename Op::Item* p, int64_t stride,
                                 std::integer_sequence<int, i...>) const {
    const auto item = [&](int row, int c, const V& first, const V& last) {
      auto* to = p + row / Op::kDepth * stride + c * Op::kLanes;
      if constexpr (Op::kDepth == 1) {
        Op::store_step(to, {first});
      } else {
        Op::store_step(to, {first, last});
      }
    };
    (item(i / 2 * Op::kDepth, i % 2, sum[i / 2 * Op::kDepth][i % 2],
          sum[i / 2 * Op::kDepth + Op::kDepth - 1][i % 2]),
     ...);
  }
};

template <int kRows>
struct Rows {
  static constexpr int value = kRows;
};

/// f(Rows<n>, first) for tiles of n rows that cover [0, rows), an even number: as high as the
/// instruction set's, the rest lower.
template <class Op, class Function>
RETNET_INLINE void each_tile(int64_t rows, const Function& f) {
  constexpr int kRows = Op::Isa::kTileRows;
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) f(Rows<kRows>{}, r);
  if constexpr (kRows > 4) {
    for (; r + 4 <= rows; r += 4) f(Rows<4>{}, r);
  }
  for (; r < rows; r += 2) f(Rows<2>{}, r);
}

/// Up to `cols` channels of up to `rows` tokens; beyond, zeros.
template <class Scalar>
struct Source {
  const Scalar* ptr;  // null: all zeros
  int64_t stride;
  int64_t rows, cols;

  /// The line four rows below: rows lie pages apart, where the hardware does not look ahead.
  RETNET_INLINE void prefetch(int64_t row, int64_t col) const {
    if (row + 4 < rows && ptr != nullptr) __builtin_prefetch(ptr + (row + 4) * stride + col);
  }

  template <int kLanes>
  RETNET_INLINE F<kLanes> vector(int64_t row, int64_t col) const {
    if (row >= rows || col >= cols || ptr == nullptr) return F<kLanes>{};
    const Scalar* p = ptr + row * stride + col;
    return col + kLanes <= cols ? load_as_float<kLanes>(p)
                                : load_first_as_float<kLanes>(p, cols - col);
  }

  /// The bits of kCount elements of 16 bits.
  template <int kCount>
  RETNET_INLINE H<kCount> halves(int64_t row, int64_t col) const {
    H<kCount> x{};
    if (row >= rows || col >= cols || ptr == nullptr) return x;
    const Scalar* p = ptr + row * stride + col;
    if (col + kCount <= cols) return load<H<kCount>>(p);
    __builtin_memcpy(&x, p, (cols - col) * sizeof(Scalar));
    return x;
  }
};

/// Fetches the tokens that come next, some lines at a time, while those before are worked on: else
/// packing waits for memory. Row by row and then line by line: rows lie in pages of their own, whose
/// addresses are looked up side by side.
class Ahead {
 public:
  /// Forgets what was added before; what is added now is fetched by `calls` calls.
  void start(int64_t calls) {
    count_ = part_ = 0;
    lines_ = row_ = col_ = 0;
    calls_ = calls;
  }
  template <class Scalar>
  void add(const Source<Scalar>& x) {
    if (x.ptr == nullptr || x.rows <= 0) return;
    const int64_t bytes = x.cols * int64_t{sizeof(Scalar)};
    parts_[count_++] = {reinterpret_cast<const char*>(x.ptr), x.stride * int64_t{sizeof(Scalar)},
                        x.rows, bytes};
    lines_ += x.rows * ((bytes + 63) / 64);
    at_once_ = (lines_ + calls_ - 1) / calls_;
  }
  RETNET_INLINE void fetch() {
    for (int64_t i = 0; i < at_once_ && part_ < count_; ++i) {
      const auto& x = parts_[part_];
      __builtin_prefetch(x.ptr + row_ * x.stride + col_, 0, 2);  // the L2 cache
      if (++row_ < x.rows) continue;
      row_ = 0;
      if ((col_ += 64) < x.bytes) continue;
      col_ = 0;
      ++part_;
    }
  }

 private:
  struct Part {
    const char* ptr;
    int64_t stride, rows, bytes;
  } parts_[4];
  int count_ = 0, part_ = 0;
  int64_t lines_ = 0, row_ = 0, col_ = 0, calls_ = 0, at_once_ = 0;
};

/// How many tiles each_tile makes.
template <class Op>
inline constexpr int64_t tiles_of(int64_t rows) {
  int64_t n = 0;
  each_tile<Op>(rows, [&](auto, int64_t) { ++n; });
  return n;
}

/// A left factor: rows of cols / kDepth items, `stride` items apart.
template <class Op, class Scalar>
RETNET_NOINLINE void pack_rows(const Source<Scalar>& x, int64_t rows, int64_t cols,
                               typename Op::Item* to, int64_t stride) {
  constexpr int kLanes = Op::kLanes;
  for (int64_t r = 0; r < rows; ++r) {
    auto* row = to + r * stride;
    for (int64_t c = 0; c < cols; c += 2 * kLanes) {
      x.prefetch(r, c);
      if constexpr (Op::kDepth == 1) {
        x.prefetch(r, c + kLanes);
        Op::store_row(row + c, x.template vector<kLanes>(r, c),
                      x.template vector<kLanes>(r, c + kLanes));
      } else {
        store(row + c / 2, x.template halves<2 * kLanes>(r, c));
      }
    }
  }
}

/// Steps along the tokens, token r times weight[r] (null: 1): rows of items, `stride` apart, in
/// blocks of `block` columns, `block_stride` items apart.
template <class Op, class Scalar>
RETNET_NOINLINE void pack_steps(const Source<Scalar>& x, int64_t rows, int64_t cols,
                                const float* weight, typename Op::Item* to, int64_t stride,
                                int64_t block, int64_t block_stride) {
  for (int64_t r = 0; r < rows; r += Op::kDepth) {
    for (int64_t first = 0; first < cols; first += block) {
      auto* row = to + first / block * block_stride + r / Op::kDepth * stride;
      if constexpr (Op::kDepth == 2) {
        if (weight == nullptr) {
          for (int64_t c = 0; c < block; c += kBlock<Op>) {
            x.prefetch(r, first + c);
            x.prefetch(r + 1, first + c);
            Op::store_steps(row + c, x.template halves<kBlock<Op>>(r, first + c),
                            x.template halves<kBlock<Op>>(r + 1, first + c));
          }
          continue;
        }
      }
      for (int64_t c = 0; c < block; c += Op::kLanes) {
        typename Op::V step[Op::kDepth];
        for (int d = 0; d < Op::kDepth; ++d) {
          x.prefetch(r + d, first + c);
          step[d] = x.template vector<Op::kLanes>(r + d, first + c);
          if (weight != nullptr && r + d < x.rows) step[d] *= weight[r + d];
        }
        Op::store_step(row + c, step);
      }
    }
  }
}

/// A block of columns of a tensor's row, or the first `cols` of them, rounded.
template <class Op, class Scalar>
RETNET_INLINE void store_block(Scalar* p, const typename Op::V& x, const typename Op::V& y,
                               int64_t cols) {
  constexpr int kLanes = Op::kLanes;
  if (cols >= 2 * kLanes) {
    Op::store_row(p, x, y);
  } else if (cols >= kLanes) {
    store_rounded<kLanes>(p, x);
    store_first_rounded<kLanes>(p + kLanes, y, cols - kLanes);
  } else {
    store_first_rounded<kLanes>(p, x, cols);
  }
}

/// The first `rows` rows of a tile at column `col` of tensor rows of `cols` columns, rounded.
template <class Op, int kRows, class Scalar>
RETNET_INLINE void store_output(Tile<Op, kRows>& tile, int64_t rows, Scalar* p, int64_t stride,
                                int64_t col, int64_t cols) {
  tile.each_row([&](int r, const typename Op::V& x, const typename Op::V& y) {
    if (r < rows) store_block<Op>(p + r * stride + col, x, y, cols - col);
  });
}

/// Scratch memory cut into aligned arrays; from null, their sizes alone.
class Arena {
 public:
  explicit Arena(void* begin) : begin_(reinterpret_cast<uintptr_t>(begin)), at_(begin_) {}
  template <class T>
  T* take(int64_t n) {
    at_ = (at_ + 63) / 64 * 64;
    auto* p = reinterpret_cast<T*>(at_);
    at_ += n * sizeof(T);
    return p;
  }
  size_t bytes() const { return at_ - begin_ + 64; }

 private:
  uintptr_t begin_, at_;
};

}  // namespace
}  // namespace retnet::kernels::cpu
