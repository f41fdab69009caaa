// SPDX-License-Identifier: Apache-2.0
//
// Which tokens a row of blocks owns, and the decay of a head, as every kernel here reads them.
#pragma once

#include "kernels/cuda/prim/prim.cuh"
#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {

// A sequence or a part of one: `length` tokens of batch row `batch` from `start` on, in reverse back from
// it. The parts of a sequence are cut, and follow one another, in the same direction.
struct Segment {
  int sequence;
  int batch;
  int start;
  int length;
  bool last;  // to be walked of its sequence, of which an empty one has one too
};

// Bound n of the packed sequences, whatever the array holds.
RETNET_DEVICE int packed_bound(const ChunkwiseParams& p, int n) {
  return prim::max(0, prim::min(p.cu_seqlens_ptr[n], static_cast<int>(p.tokens)));
}

// Tokens before sequence n of packed sequences in batch row 0, or 0; and its length.
RETNET_DEVICE int first_token(const ChunkwiseParams& p, int n) {
  return p.cu_seqlens_ptr != nullptr ? packed_bound(p, n) : 0;
}
RETNET_DEVICE int sequence_length(const ChunkwiseParams& p, int n) {
  if (p.cu_seqlens_ptr == nullptr) return static_cast<int>(p.tokens);
  return prim::max(0, packed_bound(p, n + 1) - packed_bound(p, n));
}

// The token of sequence n at position `position`, which counts from its end in reverse.
RETNET_DEVICE int walk_start(const ChunkwiseParams& p, int n, int length, int position) {
  return first_token(p, n) + (p.direction < 0 ? length - 1 - position : position);
}

// Segments of `segment` tokens have a row each, rows of one sequence following each other. Of packed
// sequences the first row depends on the sequence's own bound alone, which leaves some rows between
// them without a segment: sequence n has room for length / segment + 1 at least.
RETNET_DEVICE int first_row(const ChunkwiseParams& p, int n, int segment) {
  if (p.cu_seqlens_ptr == nullptr) return n * ((static_cast<int>(p.tokens) - 1) / segment + 1);
  return packed_bound(p, n) / segment + n;
}
RETNET_DEVICE int segment_count(int length, int segment) {
  return length > segment ? (length - 1) / segment + 1 : 1;
}

// The segment in `row`, of length 0 and not the last one where there is none. With `segment` 0 rows
// are whole sequences.
RETNET_DEVICE Segment find_segment(const ChunkwiseParams& p, int row, int segment) {
  const bool packed = p.cu_seqlens_ptr != nullptr;
  if (segment == 0) {
    const int length = sequence_length(p, row);
    return {row, packed ? 0 : row, walk_start(p, row, length, 0), length, true};
  }
  int n = 0, end = static_cast<int>(p.sequences);  // the last one that starts at or before the row
  while (end - n > 1) {
    const int middle = n + (end - n) / 2;
    (first_row(p, middle, segment) <= row ? n : end) = middle;
  }
  const int index = row - first_row(p, n, segment), length = sequence_length(p, n);
  const int count = segment_count(length, segment);
  if (index >= count) return {n, 0, 0, 0, false};
  const int before = index * segment, own = prim::min(segment, length - before);
  return {n, packed ? 0 : n, walk_start(p, n, length, before), own, index + 1 == count};
}

// The decay of a head, gamma = exp(log_decay). Where log_decay is positive or NaN every power is NaN.
struct Decay {
  float log;    // ln gamma
  float log2;   // log2 gamma, finite: gamma^0 = 1 for gamma = 0 too
  bool forget;  // gamma = 0: states are dropped by a select, since 0 times NaN is NaN

  RETNET_DEVICE explicit Decay(float log_decay) {
    constexpr float kLog2E = 1.4426950408889634f;
    log = log_decay <= 0 ? log_decay : prim::word_to_float(0x7fc00000u);
    forget = log < -3.4e38f;
    log2 = forget ? -1e30f : log * kLog2E;
  }
  // gamma^n, for n >= 0.
  RETNET_DEVICE float power(float n) const { return prim::ex2(n * log2); }
  // gamma^n - 1 without cancellation, for n > 0: a state decays by S + S * minus_one.
  RETNET_DEVICE float power_minus_one(int n) const {
    return prim::expm1(static_cast<float>(n) * log);
  }
};

// Whether the state that a sequence starts from is dropped before its first token: with gamma = 0, but
// in reverse, where the first token takes it undecayed.
RETNET_DEVICE bool drops_start(const ChunkwiseParams& p, const Decay& decay, int n) {
  return decay.forget && p.direction > 0 && sequence_length(p, n) > 0;
}

}  // namespace retnet::kernels::cuda
