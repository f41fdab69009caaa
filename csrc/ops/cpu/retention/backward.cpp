// SPDX-License-Identifier: Apache-2.0
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "ops/composite/retention.h"
#include "ops/cpu/empty_output.h"
#include "ops/cpu/instruction_set.h"
#include "ops/cpu/parallel.h"
#include "ops/cpu/retention/decay_tables.h"
#include "ops/cpu/retention/schedule.h"
#include "ops/cpu/retention/segments.h"
#include "ops/cpu/retention/support.h"
#include "ops/cpu/retention/views.h"
#include "ops/retention.h"

namespace retnet::ops {
namespace {

using retnet::kernels::cpu::RetentionBackwardParams;
using retnet::kernels::cpu::RetentionForwardParams;

/// A call whose arguments are checked and have dense channels. An undefined tensor is absent, and
/// an undefined gradient to compute is not required.
struct BackwardCall {
  const retnet::kernels::cpu::KernelTable& kernels;
  const cpu::HeadDecayTables& decay;
  const std::vector<cpu::Segment>& sequences;
  at::Tensor q, k, v, log_decay, initial_state, grad_out, grad_final_state;

  int64_t heads() const { return q.size(2); }
  int64_t head_dim_qk() const { return q.size(3); }
  int64_t head_dim_v() const { return v.size(3); }

  /// Computes grad_q and grad_log_decay, forward in time.
  void forward_pass(const at::Tensor& grad_q, const at::Tensor& grad_log_decay) const;
  /// Computes grad_k, grad_v and grad_initial_state, backward in time.
  void backward_pass(const at::Tensor& grad_k, const at::Tensor& grad_v,
                     const at::Tensor& grad_initial_state) const;
};

void BackwardCall::forward_pass(const at::Tensor& grad_q, const at::Tensor& grad_log_decay) const {
  const bool has_grad_log_decay = grad_log_decay.defined();
  const int64_t H = heads();
  const auto split = cpu::split_work(sequences, H, head_dim_qk());
  // The boundaries of segments have no derivative of the state. If it is needed, sequences stay
  // whole.
  const auto segments =
      cpu::split_into_segments(sequences, has_grad_log_decay ? 0 : split.segment_length);
  const bool is_segmented = segments.size() > sequences.size();
  const auto initial_states =
      is_segmented
          ? cpu::segment_initial_states(kernels, decay, log_decay, segments, k, v, initial_state)
          : initial_state;
  const auto slices = cpu::split_into_slices(split, segments.size(), H, head_dim_qk());
  std::vector<double> grad_log_decay_parts(has_grad_log_decay ? slices.size() : 0);
  // The kernel gets q = grad_out, k = v, v = k, grad_out = q, and transposed states.
  const auto make_params = [&](int64_t i) {
    const auto& [n, h, first, columns] = slices[i];
    const auto& segment = segments[n];
    RetentionForwardParams p;
    p.tokens = segment.tokens;
    p.head_dim_qk = head_dim_v();
    p.head_dim_v = columns;
    p.q = cpu::make_token_view(grad_out, segment, h);
    p.k = cpu::make_token_view(v, segment, h);
    p.v = cpu::make_token_view(k, segment, h, first);
    if (grad_out.defined()) p.out = cpu::make_mutable_token_view(grad_q, segment, h, first);
    const auto initial = cpu::state_view(initial_states, is_segmented ? n : segment.sequence, h);
    p.initial_state = cpu::transposed(cpu::offset_state(initial, first, 0));
    p.decay = decay[h];
    if (has_grad_log_decay) {
      p.grad_log_decay = &grad_log_decay_parts[i];
      p.grad_out = cpu::make_token_view(q, segment, h, first);
      const auto grad_final = cpu::state_view(grad_final_state, segment.sequence, h);
      p.grad_final_state = cpu::transposed(cpu::offset_state(grad_final, first, 0));
    }
    return p;
  };
  cpu::run_tasks(
      slices.size(), kernels.retention_forward_workspace_bytes(make_params(0)),
      [&](int64_t i, void* workspace) { kernels.retention_forward(make_params(i), workspace); });
  for (int64_t h = 0; has_grad_log_decay && h < H; ++h) {
    double sum = 0;
    for (size_t i = 0; i < slices.size(); ++i)
      sum += slices[i].head == h ? grad_log_decay_parts[i] : 0;
    grad_log_decay.mutable_data_ptr<float>()[h] =
        decay[h].gamma_is_zero ? 0 : static_cast<float>(sum);
  }
}

void BackwardCall::backward_pass(const at::Tensor& grad_k, const at::Tensor& grad_v,
                                 const at::Tensor& grad_initial_state) const {
  // If a head is whole, grad_k and grad_v share the gradient of the state. If it is cut, two passes
  // compute grad_v and grad_initial_state by columns of v, and grad_k by columns of k. One pass for
  // both would have to sum over slices.
  const int64_t H = heads(), Dk = head_dim_qk(), Dv = head_dim_v();
  const bool needs_k = grad_k.defined(), needs_v = grad_v.defined() || grad_initial_state.defined();
  const int64_t passes = needs_k + needs_v;
  auto split_v = cpu::split_work(sequences, H, Dv, passes),
       split_k = cpu::split_work(sequences, H, Dk, passes);
  // Both splits leave as many heads whole as the one that cuts fewer.
  const auto coarser = split_v.whole_heads > split_k.whole_heads ? split_v : split_k;
  split_v.whole_heads = split_k.whole_heads = coarser.whole_heads;
  const auto segments = cpu::split_into_segments(sequences, coarser.segment_length);
  const bool is_segmented = segments.size() > sequences.size();
  const auto grad_final_states =
      is_segmented ? cpu::segment_grad_final_states(kernels, decay, log_decay, segments, q,
                                                    grad_out, grad_final_state)
                   : grad_final_state;
  const auto is_whole = [&](const cpu::Slice& x) {
    return x.segment * H + x.head < split_v.whole_heads;
  };
  struct Task {
    cpu::Slice k, v;              // the columns that are read
    bool computes_k, computes_v;  // the gradients that are computed
  };
  std::vector<Task> tasks;
  for (const auto& v_slice : cpu::split_into_slices(split_v, segments.size(), H, Dv)) {
    const bool computes_k = is_whole(v_slice) && needs_k;
    if (computes_k || needs_v) {
      tasks.push_back({{v_slice.segment, v_slice.head, 0, Dk}, v_slice, computes_k, true});
    }
  }
  for (const auto& k_slice : cpu::split_into_slices(split_k, segments.size(), H, Dk)) {
    if (!is_whole(k_slice) && needs_k) {
      tasks.push_back({k_slice, {k_slice.segment, k_slice.head, 0, Dv}, true, false});
    }
  }
  // The largest tasks come first, so that the threads end together.
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) {
    return a.k.columns * a.v.columns > b.k.columns * b.v.columns;
  });
  const auto make_params = [&](const Task& task) {
    const auto& [n, h, first_k, columns_k] = task.k;
    const auto first_v = task.v.first_column;
    const auto& segment = segments[n];
    RetentionBackwardParams p;
    p.tokens = segment.tokens;
    p.head_dim_qk = columns_k;
    p.head_dim_v = task.v.columns;
    p.q = cpu::make_token_view(q, segment, h, first_k);
    p.k = cpu::make_token_view(k, segment, h, first_k);
    p.v = cpu::make_token_view(v, segment, h, first_v);
    p.grad_out = cpu::make_token_view(grad_out, segment, h, first_v);
    if (task.computes_k) p.grad_k = cpu::make_mutable_token_view(grad_k, segment, h, first_k);
    if (task.computes_v) p.grad_v = cpu::make_mutable_token_view(grad_v, segment, h, first_v);
    const auto grad_final =
        cpu::state_view(grad_final_states, is_segmented ? n : segment.sequence, h);
    p.grad_final_state = cpu::offset_state(grad_final, first_k, first_v);
    const bool is_first = n == 0 || segments[n - 1].sequence != segment.sequence;
    if (task.computes_v && is_first) {
      const auto grad_initial = cpu::mutable_state_view(grad_initial_state, segment.sequence, h);
      p.grad_initial_state = cpu::offset_state(grad_initial, 0, first_v);
    }
    p.decay = decay[h];
    return p;
  };
  size_t workspace_bytes = 0;
  for (const auto& task : tasks) {
    workspace_bytes =
        std::max(workspace_bytes, kernels.retention_backward_workspace_bytes(make_params(task)));
  }
  cpu::run_tasks(tasks.size(), workspace_bytes, [&](int64_t i, void* workspace) {
    kernels.retention_backward(make_params(tasks[i]), workspace);
  });
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> retention_backward_cpu(
    const std::optional<at::Tensor>& grad_out, const std::optional<at::Tensor>& grad_final_state,
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state, std::optional<double> scale,
    std::string_view form, std::optional<int64_t> chunk_size,
    const std::optional<at::Tensor>& cu_seqlens, std::array<bool, 5> output_mask) {
  const bool has_work = q.numel() > 0 && (grad_out || grad_final_state);
  if (!has_work || cpu::unsupported_reason(q, form, chunk_size) != nullptr) {
    return composite::retention_backward(grad_out, grad_final_state, q, k, v, log_decay,
                                         initial_state, scale, form, chunk_size, cu_seqlens,
                                         output_mask);
  }
  check_retention("retention_backward", q, k, v, log_decay, initial_state, form, chunk_size,
                  cu_seqlens);
  check_retention_grads(grad_out, grad_final_state, q, k, v, log_decay, cu_seqlens);
  const auto sequences = cpu::list_sequences("retention_backward", q, cu_seqlens);
  const auto empty_grad = [](bool needed, const at::Tensor& x) {
    return needed ? cpu::empty_output(x.sizes(), x.options()) : at::Tensor();
  };
  const auto [needs_q, needs_k, needs_v, needs_log_decay, needs_initial_state] = output_mask;
  auto grad_q = empty_grad(needs_q, q), grad_k = empty_grad(needs_k, k),
       grad_v = empty_grad(needs_v, v), grad_log_decay = empty_grad(needs_log_decay, log_decay),
       grad_initial_state =
           initial_state ? empty_grad(needs_initial_state, *initial_state) : at::Tensor();
  const cpu::HeadDecayTables decay(log_decay,
                                   scale.value_or(1 / std::sqrt(static_cast<double>(q.size(3)))));
  const BackwardCall call{cpu::kernels_for(cpu::instruction_set(), q.scalar_type()),
                          decay,
                          sequences,
                          cpu::with_dense_channels(q),
                          cpu::with_dense_channels(k),
                          cpu::with_dense_channels(v),
                          log_decay,
                          initial_state.value_or(at::Tensor()),
                          grad_out ? cpu::with_dense_channels(*grad_out) : at::Tensor(),
                          grad_final_state.value_or(at::Tensor())};
  if ((needs_q && grad_out) || needs_log_decay) call.forward_pass(grad_q, grad_log_decay);
  if (needs_k || needs_v || grad_initial_state.defined()) {
    call.backward_pass(grad_k, grad_v, grad_initial_state);
  }
  if (needs_q && !grad_out) grad_q.zero_();
  return {grad_q, grad_k, grad_v, grad_log_decay, grad_initial_state};
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CPU, m) { m.impl("retention_backward", retention_backward_cpu); }

}  // namespace retnet::ops
