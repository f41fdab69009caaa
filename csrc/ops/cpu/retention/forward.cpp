// SPDX-License-Identifier: Apache-2.0
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <string>

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
#include "ops/retention_plan.h"

namespace retnet::ops {
namespace {

std::tuple<at::Tensor, at::Tensor> retention_cpu(const at::Tensor& q, const at::Tensor& k,
                                                 const at::Tensor& v, const at::Tensor& log_decay,
                                                 const std::optional<at::Tensor>& initial_state,
                                                 std::optional<double> scale, std::string_view form,
                                                 std::optional<int64_t> chunk_size,
                                                 const std::optional<at::Tensor>& cu_seqlens) {
  if (cpu::unsupported_reason(q, form, chunk_size) != nullptr) {
    return composite::retention(q, k, v, log_decay, initial_state, scale, form, chunk_size,
                                cu_seqlens);
  }
  check_retention("retention", q, k, v, log_decay, initial_state, form, chunk_size, cu_seqlens);
  const auto& kernels = cpu::kernels_for(cpu::instruction_set(), q.scalar_type());
  const auto sequences = cpu::list_sequences("retention", q, cu_seqlens);
  const int64_t H = q.size(2), Dk = q.size(3), Dv = v.size(3);
  auto out = cpu::empty_output(v.sizes(), q.options());
  auto final_state =
      cpu::empty_output({static_cast<int64_t>(sequences.size()), H, Dk, Dv}, log_decay.options());
  if (final_state.numel() == 0) return {out, final_state};
  // These own the memory that the parameters point to.
  const auto dense_q = cpu::with_dense_channels(q), dense_k = cpu::with_dense_channels(k),
             dense_v = cpu::with_dense_channels(v);
  const cpu::HeadDecayTables decay(log_decay,
                                   scale.value_or(1 / std::sqrt(static_cast<double>(Dk))));
  const auto split = cpu::split_work(sequences, H, Dv);
  const auto segments = cpu::split_into_segments(sequences, split.segment_length);
  at::Tensor initial_states = initial_state.value_or(at::Tensor());
  const bool is_segmented = segments.size() > sequences.size();
  if (is_segmented) {
    initial_states = cpu::segment_initial_states(kernels, decay, log_decay, segments, dense_k,
                                                 dense_v, initial_states);
  }

  const auto slices = cpu::split_into_slices(split, segments.size(), H, Dv);
  const auto make_params = [&](const cpu::Slice& slice) {
    const auto& [n, h, first, columns] = slice;
    const auto& segment = segments[n];
    retnet::kernels::cpu::RetentionForwardParams p;
    p.tokens = segment.tokens;
    p.head_dim_qk = Dk;
    p.head_dim_v = columns;
    p.q = cpu::make_token_view(dense_q, segment, h);
    p.k = cpu::make_token_view(dense_k, segment, h);
    p.v = cpu::make_token_view(dense_v, segment, h, first);
    p.out = cpu::make_mutable_token_view(out, segment, h, first);
    const auto initial = cpu::state_view(initial_states, is_segmented ? n : segment.sequence, h);
    p.initial_state = cpu::offset_state(initial, 0, first);
    const bool is_last = n + 1 == static_cast<int64_t>(segments.size()) ||
                         segments[n + 1].sequence != segment.sequence;
    if (is_last) {
      p.final_state =
          cpu::offset_state(cpu::mutable_state_view(final_state, segment.sequence, h), 0, first);
    }
    p.decay = decay[h];
    return p;
  };
  cpu::run_tasks(slices.size(),
                 kernels.retention_forward_workspace_bytes(make_params(slices.front())),
                 [&](int64_t i, void* workspace) {
                   kernels.retention_forward(make_params(slices[i]), workspace);
                 });
  return {out, final_state};
}

RetentionPlanTuple retention_plan_cpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const at::Tensor& log_decay,
                                      const std::optional<at::Tensor>& initial_state,
                                      std::optional<double> /*scale*/, std::string_view form,
                                      std::optional<int64_t> chunk_size,
                                      const std::optional<at::Tensor>& cu_seqlens) {
  check_retention("retention_plan", q, k, v, log_decay, initial_state, form, chunk_size,
                  cu_seqlens);
  const auto sequences = cpu::list_sequences("retention_plan", q, cu_seqlens);
  if (const char* reason = cpu::unsupported_reason(q, form, chunk_size)) {
    return {"composite", reason, 0, 0, 0, 0, 0, 0, reason};
  }
  const auto split = cpu::split_work(sequences, q.size(2), v.size(3));
  const auto segments =
      static_cast<int64_t>(cpu::split_into_segments(sequences, split.segment_length).size());
  const int64_t copies = (q.stride(3) != 1) + (k.stride(3) != 1) + (v.stride(3) != 1);
  return {std::string("cpu_") + cpu::instruction_set().name,
          "",
          q.size(3),
          std::min(split.slice_width, v.size(3)),
          retnet::kernels::cpu::kChunk,
          split.segment_length,
          segments,
          copies,
          ""};
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CPU, m) {
  m.impl("retention", retention_cpu);
  m.impl("retention_plan", retention_plan_cpu);
}

}  // namespace retnet::ops
