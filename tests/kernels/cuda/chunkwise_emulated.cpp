// SPDX-License-Identifier: Apache-2.0
//
// Runs every instantiation of the chunkwise retention kernel in the SIMT emulator (tests/simt): lengths, packed
// sequences, segments, head sizes and gammas. chunkwise_edges_emulated.cpp has the rest.
#include "chunkwise_check.h"

namespace retnet::kernels::cuda {

TEST_CASE("chunkwise emulated: lengths, tiles, dtypes") {
  for_each_instantiation([&](ChunkwiseCase c) {
    const size_t C = c.shape().chunk;
    size_t turn = 0;
    for (const size_t T : {size_t{0}, size_t{1}, C - 1, C, C + 1, size_t{63}, size_t{200}}) {
      c.T = T;
      c.initial_state = turn % 2 == 0;
      c.layout = static_cast<Layout>(turn++ % 3);
      check(c);
    }
  });
}

TEST_CASE("chunkwise emulated: packed sequences") {
  for_each_instantiation([&](ChunkwiseCase c) {
    c.cu_seqlens = {0, 0, 1, 64, 129, 129, 230};
    c.T = 230;
    const ChunkwiseInputs in = make_inputs(c);
    const ChunkwiseBits packed = check(c, in);
    // The bits are the same alone, and with any values in the neighbours.
    ChunkwiseInputs poisoned = in;
    const auto poison = [&](Array& array, size_t size) {
      std::fill(array.bytes.begin() + 2 * 64 * c.H * size,
                array.bytes.begin() + 2 * 129 * c.H * size, std::byte{0xff});
    };
    poison(poisoned.q, c.head_dim_qk());
    poison(poisoned.k, c.head_dim_qk());
    poison(poisoned.v, c.head_dim_v());
    const ChunkwiseBits beside_nan = run(c, poisoned, simt::Order::kRandom);
    for (size_t n = 0; n < c.sequences(); ++n) {
      if (n == 3) continue;
      INFO(c.name() << ", sequence " << n);
      CHECK(same_bits(part(c, packed, n), part(c, beside_nan, n)));
    }
    check_alone(c, in, packed);
  });
}

TEST_CASE("chunkwise emulated: segments") {
  for_each_instantiation([&](ChunkwiseCase c) {
    c.segment = 64;
    shrink(c);
    for (const size_t T : {63, 64, 65, 200}) {
      c.T = T;
      c.initial_state = T != 65;
      const ChunkwiseBits bits = check(c);
      if (T > 64) continue;
      // One segment gives the bits of the whole sequence.
      ChunkwiseCase whole = c;
      whole.segment = 0;
      CHECK(same_bits(bits, run(whole, make_inputs(whole), simt::Order::kAscending)));
    }
    c.B = 2;
    check(c);
    c.B = 1;
    c.T = 330;
    c.cu_seqlens = {0, 0, 1, 64, 193, 193, 330, 330};
    check(c);
    c.log_decay = {kMinusInfinity, 0};
    check(c);
  });
}

TEST_CASE("chunkwise emulated: head sizes that do not fill a tile, batches, slices") {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    struct Size {
      int tile;
      size_t Dk, Dv;
    };
    for (const Size& size : {Size{0, 4, 4}, Size{0, 60, 20}, Size{1, 64, 432}, Size{2, 100, 428},
                             Size{3, 132, 260}, Size{3, 256, 428}, Size{4, 252, 132}}) {
      ChunkwiseCase c;
      c.dtype = dtype;
      c.tile = size.tile;
      c.Dk = size.Dk;
      c.Dv = size.Dv;
      c.T = 70;
      c.H = size.Dv > 256 ? 1 : 3;
      c.B = size.Dv > 256 ? 1 : 2;
      for (const Layout layout : {Layout::kContiguous, Layout::kStrided, Layout::kNarrow}) {
        c.layout = layout;
        check(c);
      }
    }
  }
}

TEST_CASE("chunkwise emulated: every gamma") {
  for_each_instantiation([&](ChunkwiseCase c) {
    shrink(c);
    c.T = 2 * c.shape().chunk + 5;
    c.H = 5;
    c.log_decay = {0, kMinusInfinity, -1e-9, -0.7, -200};
    ChunkwiseInputs in = make_inputs(c);
    check(c, in);
    // If gamma is 0, the initial state is ignored, whatever it holds.
    const auto size = static_cast<ptrdiff_t>(c.head_dim_qk() * c.head_dim_v());
    std::fill(in.initial_state.begin() + size, in.initial_state.begin() + 2 * size, NAN);
    check(c, in);
    const ChunkwiseBits good = run(c, in, simt::Order::kAscending);
    // A state that is not finite does not outlast its chunk there either.
    ChunkwiseInputs poisoned = in;
    std::fill_n(poisoned.v.bytes.begin() + 2 * c.head_dim_v(), 2 * c.head_dim_v(), std::byte{0xff});
    const ChunkwiseBits after = run(c, poisoned, simt::Order::kAscending);
    size_t wrong = 0;
    for (size_t i = c.shape().chunk * c.H * c.head_dim_v(); i < good.out.size(); ++i) {
      if (i / c.head_dim_v() % c.H == 1) wrong += after.out[i] != good.out[i];
    }
    CHECK(wrong == 0);
    CHECK(std::equal(good.final_state.begin() + size, good.final_state.begin() + 2 * size,
                     after.final_state.begin() + size));
    // A positive or NaN decay gives NaN in its own head only.
    ChunkwiseCase bad = c;
    bad.log_decay = {1e-3, kMinusInfinity, -1e-9, NAN, -200};
    const ChunkwiseBits bad_bits = run(bad, in, simt::Order::kAscending);
    for (size_t i = 0; i < good.out.size(); ++i) {
      const size_t h = i / c.head_dim_v() % c.H;
      const bool nan = std::isnan(to_doubles(&bad_bits.out[i], 1, c.dtype)[0]);
      wrong += h == 0 || h == 3 ? !nan : bad_bits.out[i] != good.out[i];
    }
    for (size_t i = 0; i < good.final_state.size(); ++i) {
      const size_t h = i / size % c.H;
      wrong += h == 0 || h == 3 ? !std::isnan(bad_bits.final_state[i])
                                : bad_bits.final_state[i] != good.final_state[i];
    }
    CHECK(wrong == 0);
  });
}

TEST_CASE("chunkwise emulated: totals") { print_totals("chunkwise"); }

}  // namespace retnet::kernels::cuda
