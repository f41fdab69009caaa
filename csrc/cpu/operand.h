// SPDX-License-Identifier: Apache-2.0
//
// How a matrix product holds its factors. An Item is what one lane multiplies at once: a float, or
// a pair of bfloat16 that follow one another along the reduction. Sums are floats in both.
//
// An instruction set `Isa` is
//     kLanes        floats in a vector
//     kTileRows     rows of a register tile, whose columns are two vectors: kTileRows * 2 sums, two
//                   vectors of the right factor and one broadcast have to fit the registers
//     dot(sum, a, b), round(x)   only where pairs are multiplied: sum + a.low b.low + a.high b.high,
//                   and x rounded to bfloat16
#pragma once

#include "cpu/vector.h"

namespace retnet::cpu {
namespace {

template <class Isa_>
struct FloatOperand {
  using Isa = Isa_;
  using Item = float;
  static constexpr int kLanes = Isa::kLanes;
  static constexpr int kDepth = 1;  // values of an item
  using V = F<kLanes>;

  static RETNET_INLINE V multiply_add(Item a, V b, V sum) { return a * b + sum; }
  static RETNET_INLINE V load_items(const Item* p) { return load<V>(p); }

  /// kLanes neighbouring values of a row, which are kLanes / kDepth items.
  static RETNET_INLINE void store_row(Item* p, const V& x) { store(p, x); }

  /// kLanes items, of rows that follow one another along the reduction.
  static RETNET_INLINE void store_step(Item* p, const V (&x)[1]) { store(p, x[0]); }
};

template <class Isa_>
struct PairOperand {
  using Isa = Isa_;
  using Item = uint32_t;  // the low half comes first
  static constexpr int kLanes = Isa::kLanes;
  static constexpr int kDepth = 2;
  using V = F<kLanes>;
  using Items = U<kLanes>;

  static RETNET_INLINE V multiply_add(Item a, Items b, V sum) {
    return Isa::dot(sum, Items{} + a, b);
  }
  static RETNET_INLINE Items load_items(const Item* p) { return load<Items>(p); }
  static RETNET_INLINE void store_row(Item* p, const V& x) { store(p, Isa::round(x)); }
  static RETNET_INLINE void store_step(Item* p, const V (&x)[2]) {
    const Items low = __builtin_convertvector(Isa::round(x[0]), Items);
    const Items high = __builtin_convertvector(Isa::round(x[1]), Items);
    store(p, low | high << 16);
  }
};

}  // namespace
}  // namespace retnet::cpu
