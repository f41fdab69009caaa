// SPDX-License-Identifier: Apache-2.0
//
// Which tokens the blocks of a segment own. Packed sequences are read on the device, so the host launches
// blocks for the most segments that there can be, and some find none.
#pragma once

#include "kernels/cuda/prim/prim.cuh"
#include "kernels/cuda/retention/chunkwise/plan.h"
#include "kernels/cuda/retention/decay.cuh"

namespace retnet::kernels::cuda {

// A sequence or a part of one: `length` tokens of batch entry `batch` from `start` on, or back from it in
// reverse. The segments of a sequence are cut, and follow one another, in the direction of time.
struct Segment {
  int sequence;
  int batch;
  int start;
  int length;
  bool
      last;  // of its sequence, in the order in which they are walked; an empty sequence has one too
};

// Returns bound n of the packed sequences. It lies in [0, T], whatever the array holds.
RETNET_DEVICE int packed_bound(const ChunkwiseParams& p, int n) {
  return prim::max(0, prim::min(p.cu_seqlens_ptr[n], static_cast<int>(p.tokens)));
}

// Returns the first token of sequence n in its batch entry. It is 0 if sequences are not packed.
RETNET_DEVICE int first_token(const ChunkwiseParams& p, int n) {
  return p.cu_seqlens_ptr != nullptr ? packed_bound(p, n) : 0;
}
RETNET_DEVICE int sequence_length(const ChunkwiseParams& p, int n) {
  if (p.cu_seqlens_ptr == nullptr) return static_cast<int>(p.tokens);
  return prim::max(0, packed_bound(p, n + 1) - packed_bound(p, n));
}

// Returns the token of sequence n at position `position`. In reverse, positions count from the end.
RETNET_DEVICE int token_at(const ChunkwiseParams& p, int n, int length, int position) {
  return first_token(p, n) + (p.direction < 0 ? length - 1 - position : position);
}

// Returns the index of the first segment of sequence n, if segments have `segment_length` tokens. Segments
// of one sequence follow each other. If sequences are packed, the index depends only on the bound of the
// sequence. Then some indices between sequences have no segment, because sequence n has room for at least
// length / segment_length + 1.
RETNET_DEVICE int first_segment(const ChunkwiseParams& p, int n, int segment_length) {
  if (p.cu_seqlens_ptr == nullptr) {
    return n * ((static_cast<int>(p.tokens) - 1) / segment_length + 1);
  }
  return packed_bound(p, n) / segment_length + n;
}
RETNET_DEVICE int segment_count(int length, int segment_length) {
  return length > segment_length ? (length - 1) / segment_length + 1 : 1;
}

// Returns the segment with an index. If there is none, the result has length 0 and is not a last one. If
// `segment_length` is 0, segments are whole sequences.
RETNET_DEVICE Segment find_segment(const ChunkwiseParams& p, int index, int segment_length) {
  const bool packed = p.cu_seqlens_ptr != nullptr;
  if (segment_length == 0) {
    const int length = sequence_length(p, index);
    return {index, packed ? 0 : index, token_at(p, index, length, 0), length, true};
  }
  // The last sequence whose first segment is at or before the index.
  int n = 0, end = static_cast<int>(p.sequences);
  while (end - n > 1) {
    const int middle = n + (end - n) / 2;
    (first_segment(p, middle, segment_length) <= index ? n : end) = middle;
  }
  const int own_index = index - first_segment(p, n, segment_length);
  const int length = sequence_length(p, n), count = segment_count(length, segment_length);
  if (own_index >= count) return {n, 0, 0, 0, false};
  const int before = own_index * segment_length;
  const int own_length = prim::min(segment_length, length - before);
  return {n, packed ? 0 : n, token_at(p, n, length, before), own_length, own_index + 1 == count};
}

// Whether nothing of its initial state reaches the tokens of sequence n. That is so if gamma is 0 and time
// runs forward. In reverse the first token takes the state undecayed.
RETNET_DEVICE bool initial_state_decays_to_zero(const ChunkwiseParams& p, const Decay& decay,
                                                int n) {
  return decay.gamma_is_zero && p.direction > 0 && sequence_length(p, n) > 0;
}

}  // namespace retnet::kernels::cuda
