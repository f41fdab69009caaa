// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/retention/schedule.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <limits>

#include "ops/composite/batch_invariance.h"
#include "ops/composite/retention.h"

namespace retnet::ops::cpu {

std::vector<Segment> list_sequences(const char* op, const at::Tensor& q,
                                    const std::optional<at::Tensor>& cu_seqlens) {
  std::vector<Segment> sequences;
  if (!cu_seqlens) {
    for (int64_t b = 0; b < q.size(0); ++b) sequences.push_back({b, 0, q.size(1), b});
    return sequences;
  }
  const auto bounds = composite::packed_bounds(op, q, *cu_seqlens);
  const int32_t* bound = bounds.const_data_ptr<int32_t>();
  for (int64_t n = 0; n + 1 < bounds.numel(); ++n) {
    sequences.push_back({0, bound[n], bound[n + 1] - bound[n], n});
  }
  return sequences;
}

namespace {

// The narrowest slice. For narrower ones, packing and scores cost more than the slices save.
constexpr int64_t kMinSliceWidth = 64;
// The shortest segment. To find its initial state costs half of a pass over it.
constexpr int64_t kMinSegmentLength = 512;
// What each further slice adds to the cost of a head, as a share of that cost. A slice packs and
// computes its own scores.
constexpr double kSliceCost = 0.05;
// If two passes compute the gradients of k and v of a head, each costs this share of the one pass
// that computes both: 4 Dk Dv products a token instead of 6.
constexpr double kPassCost = 2.0 / 3;
constexpr int64_t kAllHeads = std::numeric_limits<int64_t>::max();

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Returns the length of each of `parts` parts of `whole`, which is a multiple of `least`.
int64_t part_length(int64_t whole, int64_t parts, int64_t least) {
  return std::max(ceil_div(ceil_div(whole, parts), least) * least, least);
}

}  // namespace

WorkSplit split_work(const std::vector<Segment>& sequences, int64_t heads, int64_t columns,
                     int64_t passes) {
  const int64_t all_heads = std::max<int64_t>(1, static_cast<int64_t>(sequences.size()) * heads);
  const int64_t threads = at::get_num_threads();
  // Returns the time, in passes over a whole head, of the turns that threads take over whole heads
  // and then over slices.
  const auto time = [&](const WorkSplit& split) {
    const int64_t whole = std::min(split.whole_heads, all_heads),
                  slices = ceil_div(columns, split.slice_width);
    const int64_t turns = ceil_div((all_heads - whole) * slices * passes, threads);
    const double share =
        std::min(1.0, static_cast<double>(split.slice_width) / static_cast<double>(columns));
    const double cost =
        (passes == 1 ? 1 : kPassCost) * (1 + kSliceCost * static_cast<double>(slices - 1));
    return static_cast<double>(ceil_div(whole, threads)) +
           static_cast<double>(turns) * share * cost;
  };
  WorkSplit split{kAllHeads, part_length(columns, 1, kMinSliceWidth), 0};
  const int64_t max_slices = std::max<int64_t>(1, std::min(threads, columns / kMinSliceWidth));
  for (int64_t slices = passes == 1 ? 2 : 1; slices <= max_slices; ++slices) {
    const WorkSplit other{all_heads / threads * threads,
                          part_length(columns, slices, kMinSliceWidth), 0};
    if (time(other) < time(split)) split = other;
  }
  const int64_t parts_per_head = ceil_div(threads, all_heads);
  const int64_t segments =
      ceil_div(parts_per_head,
               split.whole_heads == kAllHeads ? 1 : ceil_div(columns, split.slice_width) * passes);
  if (segments == 1 || composite::batch_invariance_required()) return split;
  int64_t longest = 0;
  for (const auto& sequence : sequences) longest = std::max(longest, sequence.tokens);
  const int64_t length = part_length(longest, segments, kMinSegmentLength);
  if (length < longest) split.segment_length = length;
  return split;
}

std::vector<Slice> split_into_slices(const WorkSplit& split, size_t segments, int64_t heads,
                                     int64_t columns) {
  std::vector<Slice> slices;
  for (int64_t n = 0; n < static_cast<int64_t>(segments) * heads; ++n) {
    const int64_t width = n < split.whole_heads ? columns : split.slice_width;
    for (int64_t first = 0; first < columns; first += width) {
      slices.push_back({n / heads, n % heads, first, std::min(width, columns - first)});
    }
  }
  return slices;
}

std::vector<Segment> split_into_segments(const std::vector<Segment>& sequences,
                                         int64_t segment_length) {
  if (segment_length == 0) return sequences;
  std::vector<Segment> segments;
  for (auto segment : sequences) {
    const int64_t end = segment.first_token + segment.tokens;
    do {  // a sequence without tokens is a segment too
      segment.tokens = std::min(segment_length, end - segment.first_token);
      segments.push_back(segment);
      segment.first_token += segment.tokens;
    } while (segment.first_token < end);
  }
  return segments;
}

}  // namespace retnet::ops::cpu
