// SPDX-License-Identifier: Apache-2.0
//
// How the work of a call of retention, or of its gradients, is split among the threads.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

namespace retnet::ops::cpu {

/// A sequence or a segment of one: consecutive tokens of one entry of the batch.
struct Segment {
  int64_t batch, first_token, tokens;
  int64_t sequence;  // the one that it is a part of, as an index into the states
};

/// Returns all sequences of a call. Errors in cu_seqlens name the op `op`.
std::vector<Segment> list_sequences(const char* op, const at::Tensor& q,
                                    const std::optional<at::Tensor>& cu_seqlens);

/// How the work is split if the heads of all sequences do not divide evenly among the threads.
///   - The first `whole_heads` stay whole.
///   - The columns of the others are cut into slices of `slice_width`. This changes no bit.
///   - If that is not enough, the sequences are cut into segments of `segment_length` tokens (0:
///     they are not). This changes bits, and is left out if batch invariance is required.
struct WorkSplit {
  int64_t whole_heads, slice_width, segment_length;
};
/// `passes` is the number of passes over each slice of a head that is cut. The gradients of k and v
/// take two, and one if the head is whole.
WorkSplit split_work(const std::vector<Segment>& sequences, int64_t heads, int64_t columns,
                     int64_t passes = 1);

/// Columns of a head of a segment.
struct Slice {
  int64_t segment, head, first_column, columns;
};
/// Returns all columns of all heads of all segments, the widest slices first.
std::vector<Slice> split_into_slices(const WorkSplit& split, size_t segments, int64_t heads,
                                     int64_t columns);

/// Returns the segments of all sequences in order, or the sequences themselves if `segment_length`
/// is 0.
std::vector<Segment> split_into_segments(const std::vector<Segment>& sequences,
                                         int64_t segment_length);

}  // namespace retnet::ops::cpu
