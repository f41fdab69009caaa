// SPDX-License-Identifier: Apache-2.0
//
// Runs the chunkwise retention kernel at its limits in the SIMT emulator (tests/simt): a sequence alone, in a
// batch and packed, malformed bounds, scales, the limits of fp16, and strides beyond 32 bits.
#include "chunkwise_check.h"

namespace retnet::kernels::cuda {
namespace {

constexpr float kLargestHalf = 65504;

/// Runs a case with malformed bounds. If no sequence owns a token, or two do, the only promise is that all
/// accesses are inside the arrays.
ChunkwiseBits run_malformed(const ChunkwiseCase& c, const ChunkwiseInputs& in) {
  simt::Options options;
  options.seed = ++totals.cases;
  const ChunkwiseRun run = run_chunkwise(c, in, options);
  for (const simt::Finding& finding : run.report.findings) {
    using simt::FindingKind;
    if (finding.kind == FindingKind::kUnwrittenOutput ||
        finding.kind == FindingKind::kGlobalBlockConflict ||
        finding.kind == FindingKind::kGlobalUninitialised) {
      continue;
    }
    ++totals.reports;
    INFO(c.name());
    CHECK(simt::to_string(finding) == "");
  }
  return run.bits;
}

/// Returns out by definition, if each chunk reads the state before it, clamped to the range of fp16.
std::vector<double> clamped_out(const ChunkwiseCase& c, const ChunkwiseInputs& in) {
  const size_t C = static_cast<size_t>(c.shape().chunk);
  std::vector<double> out;
  std::vector<float> state = in.initial_state;
  for (size_t first = 0; first < c.T; first += C) {
    ChunkwiseCase chunk = c;
    chunk.T = std::min(C, c.T - first);
    ChunkwiseInputs alone = tokens_alone(c, in, first, first + chunk.T, 0);
    alone.initial_state = state;
    const std::vector<double> next = retention_by_definition(chunk, alone).final_state;
    state.assign(next.begin(), next.end());
    for (float& s : alone.initial_state) s = std::clamp(s, -kLargestHalf, kLargestHalf);
    const std::vector<double> part = retention_by_definition(chunk, alone).out;
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

/// These suffice if no sum of the kernel is tested: few and many warps to a column of scores.
template <class F>
void for_two_instantiations(const F& f) {
  ChunkwiseCase c;
  f(c);
  c.dtype = DType::kFloat16;
  c.tile = 4;
  f(c);
}

}  // namespace

TEST_CASE("chunkwise edges: a sequence of a batch has the bits it has alone") {
  for_two_instantiations([&](ChunkwiseCase c) {
    shrink(c);
    c.B = 3;
    c.T = c.shape().chunk + 6;
    const ChunkwiseInputs in = make_inputs(c);
    check_alone(c, in, run(c, in, simt::Order::kRandom));
  });
}

TEST_CASE("chunkwise edges: a sequence in segments has the bits it has alone") {
  for_two_instantiations([&](ChunkwiseCase c) {
    shrink(c);
    c.segment = 64;
    c.B = 2;
    c.T = 150;
    const ChunkwiseInputs batch = make_inputs(c);
    check_alone(c, batch, run(c, batch, simt::Order::kRandom));
    c.B = 1;
    c.T = 260;
    c.cu_seqlens = {0,   0,   63,
                    193, 194, 260};  // these are cut at multiples of 64 from their own starts
    const ChunkwiseInputs packed = make_inputs(c);
    check_alone(c, packed, run(c, packed, simt::Order::kRandom));
  });
}

TEST_CASE("chunkwise edges: bounds outside 0..T are clamped") {
  constexpr int32_t kMin = std::numeric_limits<int32_t>::min();
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  for_two_instantiations([&](ChunkwiseCase c) {
    shrink(c);
    c.T = 140;
    for (const int64_t segment : {0, 64}) {
      c.segment = segment;
      c.cu_seqlens = {0, 5, 120, 140};
      const ChunkwiseInputs in = make_inputs(c);
      const ChunkwiseBits expected = run(c, in, simt::Order::kAscending);
      for (const std::vector<int32_t>& bounds :
           {std::vector<int32_t>{-7, 5, 120, 141}, {kMin, 5, 120, kMax}}) {
        c.cu_seqlens = bounds;
        INFO(c.name());
        CHECK(same_bits(expected, run(c, in, simt::Order::kRandom)));
      }
    }
  });
}

TEST_CASE("chunkwise edges: malformed bounds touch nothing outside of the arrays") {
  ChunkwiseCase c;  // the code that reads the bounds is the same for every tile
  shrink(c);
  c.T = 140;
  for (const int64_t segment : {0, 64}) {
    c.segment = segment;
    for (const std::vector<int32_t>& bounds : {std::vector<int32_t>{0, 130, 20, 140},
                                               {140, 0},
                                               {3, 100},
                                               {500, -3, 70, 70, 900},
                                               {140, 140, 0, 0},
                                               {0, 140, 0, 140, 0, 140}}) {
      c.cu_seqlens = bounds;
      run_malformed(c, make_inputs(c));
    }
  }
  // A sequence that ends before it starts is empty. Its neighbours have the tokens of their bounds.
  c.segment = 0;
  c.cu_seqlens = {0, 130, 20, 140};
  const ChunkwiseInputs in = make_inputs(c);
  const std::vector<float> states = run_malformed(c, in).final_state;
  const size_t size = c.H * c.head_dim_qk() * c.head_dim_v();
  ChunkwiseCase alone = c;
  alone.cu_seqlens = {};
  for (const size_t n : {0, 2}) {
    const size_t first = c.cu_seqlens[n], end = c.cu_seqlens[n + 1];
    alone.T = end - first;
    const ChunkwiseBits bits =
        run(alone, tokens_alone(c, in, first, end, n), simt::Order::kAscending);
    CHECK(std::equal(bits.final_state.begin(), bits.final_state.end(),
                     states.begin() + static_cast<ptrdiff_t>(n * size)));
  }
  CHECK(std::equal(states.begin() + static_cast<ptrdiff_t>(size),
                   states.begin() + static_cast<ptrdiff_t>(2 * size),
                   in.initial_state.begin() + static_cast<ptrdiff_t>(size)));
}

TEST_CASE("chunkwise edges: scales") {
  for_two_instantiations([&](ChunkwiseCase c) {
    shrink(c);
    c.T = c.shape().chunk + 9;
    for (const double scale : {-0.3, 0.0, 2.0}) {
      c.scale = scale;
      check(c);
    }
  });
}

TEST_CASE("chunkwise edges: a large state is an operand clamped to fp16's range") {
  for_each_instantiation([&](ChunkwiseCase c) {
    if (c.dtype != DType::kFloat16) return;
    shrink(c);
    c.T = 2 * c.shape().chunk + 3;
    c.log_decay = {0, -0.07};  // the second head returns into the range
    c.scale = 1.0 / 256;
    ChunkwiseInputs in = make_inputs(c);
    const float states[] = {1e6f, -2e5f, 7e4f, -65600, 65504, 3};
    for (size_t i = 0; i < in.initial_state.size(); ++i) in.initial_state[i] = states[i % 6];
    const ChunkwiseBits bits = run(c, in, simt::Order::kAscending);
    const auto out = to_doubles(bits.out.data(), bits.out.size(), c.dtype);
    const std::vector<double> state(bits.final_state.begin(), bits.final_state.end());
    const ChunkwiseResult exact = retention_by_definition(c, in);
    INFO(c.name());
    CHECK(mismatch(out, clamped_out(c, in), c.head_dim_v(), c.dtype, 1) == "");
    CHECK(mismatch(out, exact.out, c.head_dim_v(), c.dtype, 10) != "");
    CHECK(mismatch(state, exact.final_state, c.head_dim_qk() * c.head_dim_v(), c.dtype, 1) == "");
  });
}

TEST_CASE("chunkwise edges: a score beyond fp16's range is infinite, in its token alone") {
  constexpr size_t kQToken = 20, kKToken = 10;
  for_two_instantiations([&](ChunkwiseCase c) {
    shrink(c);
    c.H = 1;
    c.T = 2 * c.shape().chunk;
    ChunkwiseInputs in = make_inputs(c);
    const auto set_token = [&](Array& array, size_t token, size_t size, double value) {
      for (size_t i = 0; i < size; ++i)
        array.values[token * size + i] = i % 2 == 0 ? value : -value;
      array = encode(array.values, c.dtype);
    };
    set_token(in.q, kQToken, c.head_dim_qk(), 128);
    set_token(in.k, kKToken, c.head_dim_qk(), 128);
    set_token(in.v, kKToken, c.head_dim_v(), 1.0 / 1024);
    // 0.73 128^2 Dk is the score before scale multiplies it, and is 400,000 or more.
    c.scale = 1.0 / 128;
    check(c, in);
    c.scale = 1;
    if (c.dtype == DType::kBFloat16) {
      check(c, in);
      return;
    }
    const ChunkwiseBits bits = run(c, in, simt::Order::kAscending);
    auto out = to_doubles(bits.out.data(), bits.out.size(), c.dtype);
    ChunkwiseResult exact = retention_by_definition(c, in);
    size_t infinite = 0;
    for (size_t i = 0; i < c.head_dim_v(); ++i) {
      double& value = out[kQToken * c.head_dim_v() + i];
      infinite += std::isinf(value) && std::signbit(value) == (i % 2 != 0);
      value = exact.out[kQToken * c.head_dim_v() + i];
    }
    INFO(c.name());
    CHECK(infinite == c.head_dim_v());
    CHECK(mismatch(out, exact.out, c.head_dim_v(), c.dtype, 1) == "");
    const std::vector<double> state(bits.final_state.begin(), bits.final_state.end());
    CHECK(mismatch(state, exact.final_state, c.head_dim_qk() * c.head_dim_v(), c.dtype, 1) == "");
  });
}

TEST_CASE("chunkwise edges: strides of more than 2^32 elements") {
  for_two_instantiations([&](ChunkwiseCase c) {
    shrink(c);
    for (const Layout layout : {Layout::kFarBatch, Layout::kFarTokens, Layout::kFarHeads}) {
      c.layout = layout;
      c.B = layout == Layout::kFarBatch ? 2 : 1;
      c.T = layout == Layout::kFarTokens ? 2 : 9;
      check(c);
    }
  });
}

TEST_CASE("chunkwise edges: totals") { print_totals("chunkwise edges"); }

}  // namespace retnet::kernels::cuda
