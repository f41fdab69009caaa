// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "ops/composite/deterministic.h"
#include "ops/composite/retention.h"
#include "ops/cpu/parallel.h"
#include "ops/cpu/retention/retention.h"

namespace retnet::ops::cpu {

using retnet::kernels::cpu::kChunk;

const char* refusal(const at::Tensor& q, std::string_view form, std::optional<int64_t> chunk_size) {
  if (form != "chunkwise") return "the kernel is of the chunkwise form";
  if (q.scalar_type() == at::kDouble) return "the kernel takes float32, bfloat16 and float16";
  if (chunk_size.value_or(kChunk) != kChunk) return "the kernel has chunks of 64 tokens";
  return nullptr;
}

at::Tensor dense_rows(const at::Tensor& x) {
  return x.stride(-1) == 1 ? x : x.clone(at::MemoryFormat::Contiguous);
}

std::vector<Span> sequences_of(const char* op, const at::Tensor& q,
                               const std::optional<at::Tensor>& cu_seqlens) {
  std::vector<Span> spans;
  if (!cu_seqlens) {
    for (int64_t b = 0; b < q.size(0); ++b) spans.push_back({b, 0, q.size(1), b});
    return spans;
  }
  const auto bounds = composite::packed_bounds(op, q, *cu_seqlens);
  const int32_t* bound = bounds.const_data_ptr<int32_t>();
  for (int64_t n = 0; n + 1 < bounds.numel(); ++n) {
    spans.push_back({0, bound[n], bound[n + 1] - bound[n], n});
  }
  return spans;
}

DecayOfHeads::DecayOfHeads(const at::Tensor& log_decay, double scale) {
  const auto values = log_decay.detach().contiguous();
  constexpr int64_t kPowers = kChunk + 1, kRow = 2 * kChunk;
  constexpr int64_t kFloats = 3 * kPowers + kChunk + 3 * kRow;
  memory_.resize(values.numel() * kFloats);  // zeros
  auto* at = memory_.data();
  const auto take = [&](int64_t n) { return std::exchange(at, at + n); };
  for (int64_t h = 0; h < values.numel(); ++h) {
    const double g = values.const_data_ptr<float>()[h];
    float *power = take(kPowers), *change = take(kPowers), *slope = take(kPowers),
          *readout = take(kChunk), *row = take(kRow), *column = take(kRow), *row_slope = take(kRow);
    for (int64_t n = 0; n <= kChunk; ++n) {
      // In float64, rounded once. 0 * -inf is NaN, and gamma^0 is 1 also for gamma = 0.
      const double exact = n == 0 ? 1 : std::exp(static_cast<double>(n) * g);
      power[n] = static_cast<float>(exact);
      change[n] = n == 0 ? 0 : static_cast<float>(std::expm1(static_cast<double>(n) * g));
      slope[n] = static_cast<float>(static_cast<double>(n) * exact);
      if (n > 0) readout[n - 1] = static_cast<float>(scale * exact);
      if (n == kChunk) break;
      row[kChunk - 1 - n] = column[kChunk - 1 + n] = static_cast<float>(scale * exact);
      row_slope[kChunk - 1 - n] = static_cast<float>(scale * static_cast<double>(n) * exact);
    }
    const bool is_zero = g == -std::numeric_limits<double>::infinity();
    tables_.push_back({is_zero, power, change, readout, row, column, slope, row_slope});
  }
}

namespace {

// The least: below, packing and scores cost more than they save.
constexpr int64_t kSliceWidth = 64;
// The least: a segment's start costs half of a pass over it.
constexpr int64_t kSegmentLength = 512;
// What a further slice adds to the cost of a head, as a share: each packs and has scores of its own.
constexpr double kSliceCost = 0.05;
// The cost of one of the two passes that a head's gradients of k and v take apart, as a share of
// the one they take together: 4 K V products a token of 6.
constexpr double kPassCost = 2.0 / 3;
constexpr int64_t kAll = std::numeric_limits<int64_t>::max();

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// A multiple of `least`: of `whole` in so many parts.
int64_t part_of(int64_t whole, int64_t parts, int64_t least) {
  return std::max(ceil_div(ceil_div(whole, parts), least) * least, least);
}

}  // namespace

Cut cut_of(const std::vector<Span>& sequences, int64_t heads, int64_t columns, int64_t passes) {
  const int64_t units = std::max<int64_t>(1, static_cast<int64_t>(sequences.size()) * heads);
  const int64_t threads = at::get_num_threads();
  // In whole heads: the turns that the threads take, of such and then of passes over slices.
  const auto time = [&](const Cut& cut) {
    const int64_t whole = std::min(cut.whole, units), slices = ceil_div(columns, cut.width);
    const int64_t turns = ceil_div((units - whole) * slices * passes, threads);
    const double share =
        std::min(1.0, static_cast<double>(cut.width) / static_cast<double>(columns));
    const double one =
        (passes == 1 ? 1 : kPassCost) * (1 + kSliceCost * static_cast<double>(slices - 1));
    return static_cast<double>(ceil_div(whole, threads)) + static_cast<double>(turns) * share * one;
  };
  Cut cut{kAll, part_of(columns, 1, kSliceWidth), 0};
  const int64_t most = std::max<int64_t>(1, std::min(threads, columns / kSliceWidth));
  for (int64_t slices = passes == 1 ? 2 : 1; slices <= most; ++slices) {
    const Cut other{units / threads * threads, part_of(columns, slices, kSliceWidth), 0};
    if (time(other) < time(cut)) cut = other;
  }
  const int64_t wanted = ceil_div(threads, units);
  const int64_t parts =
      ceil_div(wanted, cut.whole == kAll ? 1 : ceil_div(columns, cut.width) * passes);
  if (parts == 1 || composite::rows_apart()) return cut;
  int64_t longest = 0;
  for (const auto& span : sequences) longest = std::max(longest, span.tokens);
  const int64_t length = part_of(longest, parts, kSegmentLength);
  if (length < longest) cut.segment_length = length;
  return cut;
}

std::vector<Slice> slices_of(const Cut& cut, size_t spans, int64_t heads, int64_t columns) {
  std::vector<Slice> slices;
  for (int64_t unit = 0; unit < static_cast<int64_t>(spans) * heads; ++unit) {
    const int64_t width = unit < cut.whole ? columns : cut.width;
    for (int64_t first = 0; first < columns; first += width) {
      slices.push_back({unit / heads, unit % heads, first, std::min(width, columns - first)});
    }
  }
  return slices;
}

std::vector<Span> segments_of(const std::vector<Span>& sequences, int64_t segment_length) {
  if (segment_length == 0) return sequences;
  std::vector<Span> segments;
  for (auto span : sequences) {
    const int64_t end = span.first + span.tokens;
    do {  // a sequence without tokens is a segment, too
      span.tokens = std::min(segment_length, end - span.first);
      segments.push_back(span);
      span.first += span.tokens;
    } while (span.first < end);
  }
  return segments;
}

retnet::kernels::cpu::TokenRows rows_of(const at::Tensor& x, const Span& span, int64_t head,
                                        int64_t first) {
  if (!x.defined()) return {};
  const int64_t offset =
      span.batch_row * x.stride(0) + span.first * x.stride(1) + head * x.stride(2) + first;
  return {static_cast<const char*>(x.const_data_ptr()) +
              offset * static_cast<int64_t>(x.element_size()),
          x.stride(1)};
}

StateMatrix matrix_of(const at::Tensor& state, int64_t row, int64_t head) {
  if (!state.defined()) return {};
  auto* ptr = const_cast<float*>(state.const_data_ptr<float>());  // written where it is an output
  return {ptr + row * state.stride(0) + head * state.stride(1), state.stride(2), state.stride(3)};
}

}  // namespace retnet::ops::cpu
