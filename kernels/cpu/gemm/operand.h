// SPDX-License-Identifier: Apache-2.0
//
// How a matrix product holds its factors. An Item is what one lane multiplies at once: a float, or
// a pair of bfloat16 that follow one another along the depth, the dimension that the product
// reduces. Sums are floats in both cases.
//
// An instruction set `Isa` has
//     kLanes        floats of a vector
//     kTileRows     rows of a register tile, which has two vectors of columns. The registers have to
//                   hold 2 kTileRows sums, two vectors of the right factor and a broadcast item
// An instruction set that multiplies pairs also has
//     dot(sum, a, b)   sum + a.low b.low + a.high b.high
//     round(x, y)      x followed by y, rounded to bfloat16
#pragma once

#include "kernels/cpu/simd/float16.h"
#include "kernels/cpu/simd/vector.h"

namespace retnet::kernels::cpu {
namespace {

template <class Isa_>
struct FloatOperand {
  using Isa = Isa_;
  using Item = float;
  static constexpr int kLanes = Isa::kLanes;
  static constexpr int kItemDepth = 1;  // values of an item
  using V = F<kLanes>;

  static RETNET_INLINE V multiply_add(Item a, V b, V sum) { return a * b + sum; }
  static RETNET_INLINE V load_items(const Item* p) { return load<V>(p); }

  /// Stores 2 kLanes neighbouring values of a row, of items or of a tensor.
  template <class Scalar>
  static RETNET_INLINE void store_row(Scalar* p, const V& x, const V& y) {
    store_rounded<kLanes>(p, x);
    store_rounded<kLanes>(p + kLanes, y);
  }

  /// Stores kLanes items from kItemDepth rows that follow one another along the depth.
  static RETNET_INLINE void store_items(Item* p, const V (&rows)[1]) { store(p, rows[0]); }
};

template <class Isa_>
struct BFloat16PairOperand {
  using Isa = Isa_;
  using Item = uint32_t;  // the low half comes first
  static constexpr int kLanes = Isa::kLanes;
  static constexpr int kItemDepth = 2;
  using V = F<kLanes>;
  using Items = U<kLanes>;

  static RETNET_INLINE V multiply_add(Item a, Items b, V sum) {
    return Isa::dot(sum, Items{} + a, b);
  }
  static RETNET_INLINE Items load_items(const Item* p) { return load<Items>(p); }
  static RETNET_INLINE void store_row(void* p, const V& x, const V& y) {
    store(p, Isa::round(x, y));
  }
  static RETNET_INLINE void store_items(Item* p, const V (&rows)[2]) {
    const auto values = Isa::round(rows[0], rows[1]);
    store(p, pairs<0, kLanes>(values, values, std::make_integer_sequence<int, 2 * kLanes>{}));
  }

  /// Stores 2 kLanes items from two rows that follow one another along the depth.
  static RETNET_INLINE void store_interleaved(Item* p, const H<2 * kLanes>& first,
                                              const H<2 * kLanes>& second) {
    using Lanes = std::make_integer_sequence<int, 2 * kLanes>;
    store(p, pairs<0, 2 * kLanes>(first, second, Lanes{}));
    store(p + kLanes, pairs<kLanes, 3 * kLanes>(first, second, Lanes{}));
  }

 private:
  /// Pairs (i, j), (i + 1, j + 1) .. of the values of x followed by those of y.
  template <int i, int j, class Values, int... l>
  static RETNET_INLINE Values pairs(const Values& x, const Values& y,
                                    std::integer_sequence<int, l...>) {
    return __builtin_shufflevector(x, y, ((l & 1 ? j : i) + l / 2)...);
  }
};

}  // namespace
}  // namespace retnet::kernels::cpu
