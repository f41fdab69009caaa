// SPDX-License-Identifier: Apache-2.0
//
// What the forward and the backward of retention on the CPU share: which calls the kernels take,
// and how a call is cut into tasks.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

#include "kernels/cpu/retention/params.h"

namespace retnet::ops::cpu {

/// Why the kernels do not take a call, or null.
const char* refusal(const at::Tensor& q, std::string_view form, std::optional<int64_t> chunk_size);

/// x, or a copy where its last dimension is not dense.
at::Tensor dense_rows(const at::Tensor& x);

/// Tokens of one sequence, or of a segment of one, and its row of the states.
struct Span {
  int64_t batch_row, first, tokens;
  int64_t state_row;
};

/// All sequences; those of a packed batch in the name of `op`.
std::vector<Span> sequences_of(const char* op, const at::Tensor& q,
                               const std::optional<at::Tensor>& cu_seqlens);

/// The powers of gamma of every head, and the memory they lie in.
class DecayOfHeads {
 public:
  DecayOfHeads(const at::Tensor& log_decay, double scale);
  const retnet::kernels::cpu::DecayTables& operator[](int64_t head) const { return tables_[head]; }

 private:
  std::vector<float> memory_;
  std::vector<retnet::kernels::cpu::DecayTables> tables_;
};

/// How the work on heads of sequences is cut where they do not go evenly into the threads: the
/// first `whole` stay so, the columns of the others are cut into slices as wide as `width`, and where
/// that is not enough, the longest of sequences into segments of `segment_length` tokens (0: not cut).
struct Cut {
  int64_t whole, width, segment_length;
};
/// Slices do not change a bit of the result, segments do: they are left out where the result must
/// not depend on the batch (torch.use_deterministic_algorithms).
/// `passes`: over each slice of a head that is cut; 2, of the gradients of k and of v, are one where
/// the head is whole.
Cut cut_of(const std::vector<Span>& sequences, int64_t heads, int64_t columns, int64_t passes = 1);

/// Columns first .. of a head of a span.
struct Slice {
  int64_t span, head, first, width;
};
/// All columns of all heads of spans, the widest slices first.
std::vector<Slice> slices_of(const Cut& cut, size_t spans, int64_t heads, int64_t columns);

/// Sequences cut into segments, in order; the state rows stay those of the sequences.
std::vector<Span> segments_of(const std::vector<Span>& sequences, int64_t segment_length);

/// The tokens of a span in head h of x [B, T, H, D] from channel `first` on; x undefined: zeros.
retnet::kernels::cpu::TokenRows rows_of(const at::Tensor& x, const Span& span, int64_t head,
                                        int64_t first = 0);

/// The matrix of a state [N, H, Dk, Dv] of any strides; undefined: null.
struct StateMatrix {
  float* ptr = nullptr;
  int64_t row = 0, col = 0;  // strides
};
StateMatrix matrix_of(const at::Tensor& state, int64_t row, int64_t head);

/// The states at the start of every segment, [segments, H, Dk, Dv], forward in time from
/// initial_state (undefined: zeros): the local end states of the segments side by side, then a scan.
at::Tensor states_of_segments(const retnet::kernels::cpu::Kernels& kernels,
                              const DecayOfHeads& decay, const at::Tensor& log_decay,
                              const std::vector<Span>& segments, const at::Tensor& k,
                              const at::Tensor& v, const at::Tensor& initial_state);

/// The adjoints of the state at the end of every segment, [segments, H, Dk, Dv], backward in time
/// from grad_state (undefined: zeros).
at::Tensor adjoints_of_segments(const retnet::kernels::cpu::Kernels& kernels,
                                const DecayOfHeads& decay, const at::Tensor& log_decay,
                                const std::vector<Span>& segments, const at::Tensor& q,
                                const at::Tensor& grad_out, const at::Tensor& grad_state);

}  // namespace retnet::ops::cpu
