// SPDX-License-Identifier: Apache-2.0
//
// Makes these assertions about every call of the chunkwise kernel in the SIMT emulator, and takes calls apart:
// - Its values agree with float64.
// - The checker finds nothing, and there is no bank conflict.
// - The bits are the same in every order of blocks, warps and lanes.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "chunkwise_device.h"

namespace retnet::kernels::cuda {

struct Totals {
  size_t cases = 0;
  size_t reports = 0;
};
inline Totals totals;

inline bool same_bits(const ChunkwiseBits& a, const ChunkwiseBits& b) {
  return a.out == b.out && a.final_state.size() == b.final_state.size() &&
         std::memcmp(a.final_state.data(), b.final_state.data(), 4 * a.final_state.size()) == 0;
}

inline double norm_error(const std::vector<double>& actual, const std::vector<double>& reference) {
  double error = 0;
  for (size_t i = 0; i < actual.size(); ++i) error += std::pow(actual[i] - reference[i], 2);
  return std::sqrt(error);
}

/// Returns what is wrong with the values, or an empty string.
inline std::string check_values(const ChunkwiseCase& c, const ChunkwiseInputs& in,
                                const ChunkwiseBits& bits) {
  const ChunkwiseResult exact = retention_by_definition(c, in);
  const auto out = to_doubles(bits.out.data(), bits.out.size(), c.dtype);
  std::string wrong = mismatch(out, exact.out, c.head_dim_v(), c.dtype, 1);
  // The composite computes in fp32 and rounds once, so its error is that of the rounding.
  const auto rounded = encode(exact.out, c.dtype).values;
  const double ours = norm_error(out, exact.out), its = norm_error(rounded, exact.out);
  if (wrong.empty() && !(ours <= 2 * its)) {
    wrong = "out: " + std::to_string(ours / its) + " times the error of one rounding";
  }
  const std::vector<double> state(bits.final_state.begin(), bits.final_state.end());
  const std::string text =
      mismatch(state, exact.final_state, c.head_dim_qk() * c.head_dim_v(), c.dtype, 1);
  return text.empty() ? wrong : wrong + " final_state: " + text;
}

/// Runs once and makes all assertions about a run.
inline ChunkwiseBits run(const ChunkwiseCase& c, const ChunkwiseInputs& in, simt::Order order) {
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

/// Runs a case in the three orders. Checks and returns its values.
inline ChunkwiseBits check(const ChunkwiseCase& c, const ChunkwiseInputs& in) {
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
inline ChunkwiseBits check(const ChunkwiseCase& c) { return check(c, make_inputs(c)); }

/// Returns the smallest head that still takes its tile.
inline void shrink(ChunkwiseCase& c) {
  c.Dk = c.shape().head_dim_qk / 2 + 4;
  c.Dv = c.shape().slice == 64 ? 20 : 68;
}

template <class F>
void for_each_instantiation(const F& f) {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (int tile = 0; tile < kChunkwiseTileCount; ++tile) {
      if (kChunkwiseTiles[tile].head_dim_qk > kChunkwiseMaxHeadDimQk)
        continue;  // used only for gradients
      ChunkwiseCase c;
      c.dtype = dtype;
      c.tile = tile;
      f(c);
    }
  }
}

/// Returns the outputs and the state of sequence n of a packed or batched result.
inline ChunkwiseBits part(const ChunkwiseCase& c, const ChunkwiseBits& all, size_t n) {
  const size_t row = c.H * c.head_dim_v(), state = c.H * c.head_dim_qk() * c.head_dim_v();
  const size_t first = c.cu_seqlens.empty() ? n * c.T : c.cu_seqlens[n];
  const size_t end = c.cu_seqlens.empty() ? first + c.T : c.cu_seqlens[n + 1];
  return {{all.out.begin() + first * row, all.out.begin() + end * row},
          {all.final_state.begin() + n * state, all.final_state.begin() + (n + 1) * state}};
}

/// Returns the inputs of tokens first .. end - 1, counted through the batch, as one sequence that starts from
/// the state of sequence n.
inline ChunkwiseInputs tokens_alone(const ChunkwiseCase& c, const ChunkwiseInputs& in, size_t first,
                                    size_t end, size_t n) {
  const auto slice = [&](const Array& array, size_t size) {
    const size_t row = c.H * size;
    return Array{{array.bytes.begin() + 2 * first * row, array.bytes.begin() + 2 * end * row},
                 {array.values.begin() + first * row, array.values.begin() + end * row}};
  };
  const size_t state = c.H * c.head_dim_qk() * c.head_dim_v();
  ChunkwiseInputs alone{
      slice(in.q, c.head_dim_qk()), slice(in.k, c.head_dim_qk()), slice(in.v, c.head_dim_v()), {}};
  if (c.initial_state) {
    alone.initial_state.assign(in.initial_state.begin() + n * state,
                               in.initial_state.begin() + (n + 1) * state);
  }
  return alone;
}

/// Checks that each sequence of a batched or packed call has the same bits as in its own call.
inline void check_alone(const ChunkwiseCase& c, const ChunkwiseInputs& in,
                        const ChunkwiseBits& together) {
  for (size_t n = 0; n < c.sequences(); ++n) {
    const size_t first = c.cu_seqlens.empty() ? n * c.T : c.cu_seqlens[n];
    const size_t end = c.cu_seqlens.empty() ? first + c.T : c.cu_seqlens[n + 1];
    ChunkwiseCase alone = c;
    alone.B = 1;
    alone.T = end - first;
    alone.cu_seqlens = {};
    if (static_cast<int64_t>(alone.T) <= c.segment) alone.segment = 0;  // as the plan does
    const ChunkwiseBits bits =
        run(alone, tokens_alone(c, in, first, end, n), simt::Order::kDescending);
    INFO(c.name() << ", sequence " << n);
    CHECK(same_bits(part(c, together, n), bits));
  }
}

/// This is the last test of a file.
inline void print_totals(const char* name) {
  std::printf("%s: %zu cases, %zu reports\n", name, totals.cases, totals.reports);
  CHECK(totals.cases > 0);
  CHECK(totals.reports == 0);
}

}  // namespace retnet::kernels::cuda
