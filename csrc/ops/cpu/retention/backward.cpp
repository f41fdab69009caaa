// SPDX-License-Identifier: Apache-2.0
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "ops/composite/retention.h"
#include "ops/cpu/empty_output.h"
#include "ops/cpu/instruction_set.h"
#include "ops/cpu/parallel.h"
#include "ops/cpu/retention/retention.h"
#include "ops/retention.h"

namespace retnet::ops {
namespace {

using retnet::kernels::cpu::ReadoutParams;
using retnet::kernels::cpu::UpdateParams;

/// A call whose arguments are checked and readable. Undefined tensors: absent, not asked for.
struct Backward {
  const retnet::kernels::cpu::Kernels& kernels;
  const cpu::DecayOfHeads& decay;
  const std::vector<cpu::Span>& sequences;
  at::Tensor q, k, v, log_decay, initial_state, grad_out, grad_state;

  int64_t num_heads() const { return q.size(2); }
  int64_t inner() const { return q.size(3); }
  int64_t outer() const { return v.size(3); }

  /// grad_q and the gradient of log_decay, which are forward in time: the readout of grad_out
  /// through the transposed state.
  void readout(const at::Tensor& grad_q, const at::Tensor& grad_log_decay) const;
  /// grad_k, grad_v, grad_initial_state, which are backward in time.
  void update(const at::Tensor& grad_k, const at::Tensor& grad_v,
              const at::Tensor& grad_initial_state) const;
};

void Backward::readout(const at::Tensor& grad_q, const at::Tensor& grad_log_decay) const {
  const bool slope = grad_log_decay.defined();
  const int64_t H = num_heads();
  // The derivative of the state has no boundary values: with it, sequences stay whole.
  const auto cut = cpu::cut_of(sequences, H, inner());
  const auto spans = cpu::segments_of(sequences, slope ? 0 : cut.segment_length);
  const bool segmented = spans.size() > sequences.size();
  const auto initial =
      segmented ? cpu::states_of_segments(kernels, decay, log_decay, spans, k, v, initial_state)
                : initial_state;
  const auto slices = cpu::slices_of(cut, spans.size(), H, inner());
  std::vector<double> slopes(slope ? slices.size() : 0);
  const auto params_of = [&](int64_t i) {
    const auto& [n, h, first, width] = slices[i];
    const auto& span = spans[n];
    ReadoutParams p;
    p.tokens = span.tokens;
    p.inner = outer();
    p.outer = width;
    p.a = cpu::rows_of(grad_out, span, h);
    p.b = cpu::rows_of(v, span, h);
    p.c = cpu::rows_of(k, span, h, first);
    if (grad_q.defined() && grad_out.defined()) {
      p.y = const_cast<void*>(cpu::rows_of(grad_q, span, h, first).ptr);
      p.y_stride = grad_q.stride(1);
    }
    const auto start = cpu::matrix_of(initial, segmented ? n : span.state_row, h);
    if (start.ptr) p.initial = start.ptr + first * start.row;
    p.initial_inner = start.col;
    p.initial_outer = start.row;
    p.decay = decay[h];
    if (slope) {
      p.slope = &slopes[i];
      p.q = cpu::rows_of(q, span, h, first);
      const auto end = cpu::matrix_of(grad_state, span.state_row, h);
      if (end.ptr) p.grad_state = end.ptr + first * end.row;
      p.grad_state_inner = end.col;
      p.grad_state_outer = end.row;
    }
    return p;
  };
  cpu::run_tasks(slices.size(), kernels.readout_scratch(params_of(0)),
                 [&](int64_t i, void* memory) { kernels.readout(params_of(i), memory); });
  for (int64_t h = 0; slope && h < H; ++h) {
    double sum = 0;
    for (size_t i = 0; i < slices.size(); ++i) sum += slices[i].head == h ? slopes[i] : 0;
    grad_log_decay.mutable_data_ptr<float>()[h] = decay[h].is_zero ? 0 : static_cast<float>(sum);
  }
}

void Backward::update(const at::Tensor& grad_k, const at::Tensor& grad_v,
                      const at::Tensor& grad_initial_state) const {
  // Of a whole head, grad_k and grad_v share the adjoint. Of a head that is cut, grad_v and
  // grad_initial_state go by columns of v and grad_k by columns of k, one after the other: together
  // they would add up over slices.
  const int64_t H = num_heads(), K = inner(), V = outer();
  const bool ask_k = grad_k.defined(), ask_v = grad_v.defined() || grad_initial_state.defined();
  const int64_t passes = ask_k + ask_v;
  auto by_v = cpu::cut_of(sequences, H, V, passes), by_k = cpu::cut_of(sequences, H, K, passes);
  // Both as the one that cuts less.
  const auto less = by_v.whole > by_k.whole ? by_v : by_k;
  by_v.whole = by_k.whole = less.whole;
  const auto spans = cpu::segments_of(sequences, less.segment_length);
  const bool segmented = spans.size() > sequences.size();
  const auto adjoint = segmented ? cpu::adjoints_of_segments(kernels, decay, log_decay, spans, q,
                                                             grad_out, grad_state)
                                 : grad_state;
  const auto is_whole = [&](const cpu::Slice& x) { return x.span * H + x.head < by_v.whole; };
  struct Part {
    cpu::Slice k, v;  // what is read
    bool of_k, of_v;  // whose gradients
  };
  std::vector<Part> parts;
  for (const auto& v_slice : cpu::slices_of(by_v, spans.size(), H, V)) {
    const bool of_k = is_whole(v_slice) && ask_k;
    if (of_k || ask_v) parts.push_back({{v_slice.span, v_slice.head, 0, K}, v_slice, of_k, true});
  }
  for (const auto& k_slice : cpu::slices_of(by_k, spans.size(), H, K)) {
    if (!is_whole(k_slice) && ask_k) {
      parts.push_back({k_slice, {k_slice.span, k_slice.head, 0, V}, true, false});
    }
  }
  // The largest first, so that the threads end together.
  std::stable_sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) {
    return a.k.width * a.v.width > b.k.width * b.v.width;
  });
  const auto params_of = [&](const Part& part) {
    const auto& [n, h, first_k, width_k] = part.k;
    const auto first_v = part.v.first;
    const auto& span = spans[n];
    UpdateParams p;
    p.tokens = span.tokens;
    p.inner = width_k;
    p.outer = part.v.width;
    p.q = cpu::rows_of(q, span, h, first_k);
    p.k = cpu::rows_of(k, span, h, first_k);
    p.v = cpu::rows_of(v, span, h, first_v);
    p.grad_out = cpu::rows_of(grad_out, span, h, first_v);
    if (part.of_k) {
      p.grad_k = const_cast<void*>(cpu::rows_of(grad_k, span, h, first_k).ptr);
      p.grad_k_stride = grad_k.stride(1);
    }
    if (part.of_v && grad_v.defined()) {
      p.grad_v = const_cast<void*>(cpu::rows_of(grad_v, span, h, first_v).ptr);
      p.grad_v_stride = grad_v.stride(1);
    }
    const auto end = cpu::matrix_of(adjoint, segmented ? n : span.state_row, h);
    if (end.ptr) p.grad_state = end.ptr + first_k * end.row + first_v * end.col;
    p.grad_state_inner = end.row;
    p.grad_state_outer = end.col;
    const bool is_first = n == 0 || spans[n - 1].state_row != span.state_row;
    if (part.of_v && grad_initial_state.defined() && is_first) {
      const auto start = cpu::matrix_of(grad_initial_state, span.state_row, h);
      p.grad_initial = start.ptr + first_v;
      p.grad_initial_inner = start.row;
    }
    p.decay = decay[h];
    return p;
  };
  size_t scratch = 0;
  for (const auto& part : parts) {
    scratch = std::max(scratch, kernels.update_scratch(params_of(part)));
  }
  cpu::run_tasks(parts.size(), scratch,
                 [&](int64_t i, void* memory) { kernels.update(params_of(parts[i]), memory); });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> retention_backward_cpu(
    const std::optional<at::Tensor>& grad_out, const std::optional<at::Tensor>& grad_state,
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state, std::optional<double> scale,
    std::string_view form, std::optional<int64_t> chunk_size,
    const std::optional<at::Tensor>& cu_seqlens, std::array<bool, 5> output_mask) {
  const bool anything = q.numel() > 0 && (grad_out || grad_state);
  if (!anything || cpu::refusal(q, form, chunk_size) != nullptr) {
    return composite::retention_backward(grad_out, grad_state, q, k, v, log_decay, initial_state,
                                         scale, form, chunk_size, cu_seqlens, output_mask);
  }
  check_retention("retention_backward", q, k, v, log_decay, initial_state, form, chunk_size,
                  cu_seqlens);
  check_retention_grads(grad_out, grad_state, q, k, v, log_decay, cu_seqlens);
  const auto sequences = cpu::sequences_of("retention_backward", q, cu_seqlens);
  const auto like = [](bool asked, const at::Tensor& x) {
    return asked ? cpu::empty_output(x.sizes(), x.options()) : at::Tensor();
  };
  const auto [ask_q, ask_k, ask_v, ask_log_decay, ask_state] = output_mask;
  auto grad_q = like(ask_q, q), grad_k = like(ask_k, k), grad_v = like(ask_v, v),
       grad_log_decay = like(ask_log_decay, log_decay),
       grad_initial_state = initial_state ? like(ask_state, *initial_state) : at::Tensor();
  const cpu::DecayOfHeads decay(log_decay,
                                scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3)))));
  const Backward call{cpu::kernels_of(cpu::instruction_set(), q.scalar_type()),
                      decay,
                      sequences,
                      cpu::dense_rows(q),
                      cpu::dense_rows(k),
                      cpu::dense_rows(v),
                      log_decay,
                      initial_state.value_or(at::Tensor()),
                      grad_out ? cpu::dense_rows(*grad_out) : at::Tensor(),
                      grad_state.value_or(at::Tensor())};
  if ((ask_q && grad_out) || ask_log_decay) call.readout(grad_q, grad_log_decay);
  if (ask_k || ask_v || grad_initial_state.defined()) {
    call.update(grad_k, grad_v, grad_initial_state);
  }
  if (ask_q && !grad_out) grad_q.zero_();
  return {grad_q, grad_k, grad_v, grad_log_decay, grad_initial_state};
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CPU, m) { m.impl("retention_backward", retention_backward_cpu); }

}  // namespace retnet::ops
