// SPDX-License-Identifier: Apache-2.0
//
// The chunkwise retention kernel, every instantiation, run lane by lane on the CPU (tests/simt):
// against float64, with no finding of the checker, no bank conflict, and the same bits in every
// order of blocks, warps and lanes, alone, in a batch and packed.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "chunkwise_device.h"

namespace retnet::kernels {
namespace {

struct Totals {
  size_t cases = 0;
  size_t reports = 0;
} totals;

bool same_bits(const ChunkwiseBits& a, const ChunkwiseBits& b) {
  return a.out == b.out && a.final_state.size() == b.final_state.size() &&
         std::memcmp(a.final_state.data(), b.final_state.data(), 4 * a.final_state.size()) == 0;
}

double norm_error(const std::vector<double>& actual, const std::vector<double>& reference) {
  double error = 0;
  for (size_t i = 0; i < actual.size(); ++i) error += std::pow(actual[i] - reference[i], 2);
  return std::sqrt(error);
}

/// What is wrong with the values, or empty.
std::string check_values(const ChunkwiseCase& c, const ChunkwiseInputs& in,
                         const ChunkwiseBits& bits) {
  const ChunkwiseResult exact = retention_by_definition(c, in);
  const auto out = to_doubles(bits.out.data(), bits.out.size(), c.dtype);
  std::string wrong = mismatch(out, exact.out, c.values(), c.dtype, 1);
  // The composite computes in fp32 and rounds once: its error is that of the rounding.
  const auto rounded = encode(exact.out, c.dtype).values;
  const double ours = norm_error(out, exact.out), its = norm_error(rounded, exact.out);
  if (wrong.empty() && !(ours <= 2 * its)) {
    wrong = "out: " + std::to_string(ours / its) + " times the error of one rounding";
  }
  const std::vector<double> state(bits.final_state.begin(), bits.final_state.end());
  const std::string text = mismatch(state, exact.final_state, c.keys() * c.values(), c.dtype, 1);
  return text.empty() ? wrong : wrong + " final_state: " + text;
}

/// One run and all of what is asserted of every run.
ChunkwiseBits run(const ChunkwiseCase& c, const ChunkwiseInputs& in, simt::Order order) {
  simt::Options options;
  options.order = order;
  options.seed = ++totals.cases;
  const ChunkwiseRun run = run_chunkwise(c, in, options);
  totals.reports += run.report.findings.size();
  uint64_t conflicts = run.report.total().bank_conflicts();
  if (!run.wide) {  // copies of 8 bytes touch every other word of a line
    const simt::SharedCount copies = run.report.total().async_store;
    conflicts -= copies.wavefronts - copies.minimum;
  }
  if (!run.report.findings.empty() || conflicts != 0) {
    INFO(c.name() << ", order " << static_cast<int>(order));
    CHECK(run.report.to_string() == "");
    CHECK(conflicts == 0);
  }
  return run.bits;
}

/// A case in the three orders, its values checked and returned.
ChunkwiseBits check(const ChunkwiseCase& c, const ChunkwiseInputs& in) {
  const ChunkwiseBits first = run(c, in, simt::Order::kAscending);
  const bool descending = same_bits(first, run(c, in, simt::Order::kDescending));
  const bool random = same_bits(first, run(c, in, simt::Order::kRandom));
  const std::string wrong = check_values(c, in, first);
  if (!descending || !random || !wrong.empty()) {
    INFO(c.name());
    CHECK(descending);
    CHECK(random);
    CHECK(wrong == "");
  }
  return first;
}
ChunkwiseBits check(const ChunkwiseCase& c) { return check(c, make_inputs(c)); }

/// The smallest head that still takes its tile.
void shrink(ChunkwiseCase& c) {
  c.K = c.shape().inner / 2 + 4;
  c.V = c.shape().slice == 64 ? 20 : 68;
}

template <class F>
void for_each_instantiation(const F& f) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (int tile = 0; tile < kChunkwiseTileCount; ++tile) {
      ChunkwiseCase c;
      c.dtype = dtype;
      c.tile = tile;
      f(c);
    }
  }
}

/// The rows of sequence n, and its state, of a packed or batched result.
ChunkwiseBits part(const ChunkwiseCase& c, const ChunkwiseBits& all, size_t n) {
  const size_t row = c.H * c.values(), state = c.H * c.keys() * c.values();
  const size_t first = c.cu_seqlens.empty() ? n * c.T : c.cu_seqlens[n];
  const size_t end = c.cu_seqlens.empty() ? first + c.T : c.cu_seqlens[n + 1];
  return {{all.out.begin() + first * row, all.out.begin() + end * row},
          {all.final_state.begin() + n * state, all.final_state.begin() + (n + 1) * state}};
}

}  // namespace

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
    // The same bits alone, and whatever the neighbours hold.
    ChunkwiseInputs poisoned = in;
    const auto poison = [&](Array& array, size_t size) {
      std::fill(array.bytes.begin() + 2 * 64 * c.H * size,
                array.bytes.begin() + 2 * 129 * c.H * size, std::byte{0xff});
    };
    poison(poisoned.q, c.keys());
    poison(poisoned.k, c.keys());
    poison(poisoned.v, c.values());
    const ChunkwiseBits beside_nan = run(c, poisoned, simt::Order::kRandom);
    for (size_t n = 0; n < c.sequences(); ++n) {
      if (n == 3) continue;
      INFO(c.name() << ", sequence " << n);
      CHECK(same_bits(part(c, packed, n), part(c, beside_nan, n)));
    }
    ChunkwiseCase alone = c;
    alone.cu_seqlens = {};
    alone.T = 101;
    ChunkwiseInputs rows;
    const auto slice = [](const Array& array, size_t size) {
      return Array{{array.bytes.begin() + 2 * 129 * size, array.bytes.begin() + 2 * 230 * size},
                   {}};
    };
    rows.q = slice(in.q, c.H * c.keys());
    rows.k = slice(in.k, c.H * c.keys());
    rows.v = slice(in.v, c.H * c.values());
    rows.initial_state.assign(in.initial_state.end() - c.H * c.keys() * c.values(),
                              in.initial_state.end());
    CHECK(same_bits(part(c, packed, 5), run(alone, rows, simt::Order::kDescending)));
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
      // One segment is the whole sequence, to the bit.
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
      size_t K, V;
    };
    for (const Size& size : {Size{0, 4, 4}, Size{0, 60, 20}, Size{1, 64, 432}, Size{2, 100, 428},
                             Size{3, 132, 260}, Size{3, 256, 428}, Size{4, 252, 132}}) {
      ChunkwiseCase c;
      c.dtype = dtype;
      c.tile = size.tile;
      c.K = size.K;
      c.V = size.V;
      c.T = 70;
      c.H = size.V > 256 ? 1 : 3;
      c.B = size.V > 256 ? 1 : 2;
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
    // At gamma = 0 whatever the initial state holds is ignored.
    const auto size = static_cast<ptrdiff_t>(c.keys() * c.values());
    std::fill(in.initial_state.begin() + size, in.initial_state.begin() + 2 * size, NAN);
    check(c, in);
    const ChunkwiseBits good = run(c, in, simt::Order::kAscending);
    // Nor does a state that is not finite outlast its chunk there.
    ChunkwiseInputs poisoned = in;
    std::fill_n(poisoned.v.bytes.begin() + 2 * c.values(), 2 * c.values(), std::byte{0xff});
    const ChunkwiseBits after = run(c, poisoned, simt::Order::kAscending);
    size_t wrong = 0;
    for (size_t i = c.shape().chunk * c.H * c.values(); i < good.out.size(); ++i) {
      if (i / c.values() % c.H == 1) wrong += after.out[i] != good.out[i];
    }
    CHECK(wrong == 0);
    CHECK(std::equal(good.final_state.begin() + size, good.final_state.begin() + 2 * size,
                     after.final_state.begin() + size));
    // A positive or NaN decay is NaN in its own head alone.
    ChunkwiseCase bad = c;
    bad.log_decay = {1e-3, kMinusInfinity, -1e-9, NAN, -200};
    const ChunkwiseBits bad_bits = run(bad, in, simt::Order::kAscending);
    for (size_t i = 0; i < good.out.size(); ++i) {
      const size_t h = i / c.values() % c.H;
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

TEST_CASE("chunkwise emulated: a large fp16 state saturates as an operand") {
  ChunkwiseCase c;
  c.dtype = DType::kFloat16;
  c.T = 64;
  c.H = 1;
  c.initial_state = true;
  ChunkwiseInputs in = make_inputs(c);
  std::fill(in.initial_state.begin(), in.initial_state.end(), 1e6f);
  const ChunkwiseBits bits = run(c, in, simt::Order::kAscending);
  for (const double x : to_doubles(bits.out.data(), bits.out.size(), c.dtype)) {
    CHECK_FALSE(std::isnan(x));
  }
}

TEST_CASE("chunkwise emulated: totals") {
  std::printf("chunkwise: %zu cases, %zu reports\n", totals.cases, totals.reports);
  CHECK(totals.cases > 0);
  CHECK(totals.reports == 0);
}

}  // namespace retnet::kernels
