// SPDX-License-Identifier: Apache-2.0
#include <torch/library.h>

#include <cmath>
#include <string>

#include "ops/composite/retention.h"
#include "ops/cpu/empty_output.h"
#include "ops/cpu/instruction_set.h"
#include "ops/cpu/parallel.h"
#include "ops/cpu/retention/retention.h"
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
  if (cpu::refusal(q, form, chunk_size) != nullptr) {
    return composite::retention(q, k, v, log_decay, initial_state, scale, form, chunk_size,
                                cu_seqlens);
  }
  check_retention("retention", q, k, v, log_decay, initial_state, form, chunk_size, cu_seqlens);
  const auto& kernels = cpu::kernels_of(cpu::instruction_set(), q.scalar_type());
  const auto sequences = cpu::sequences_of("retention", q, cu_seqlens);
  const int64_t H = q.size(2), K = q.size(3), V = v.size(3);
  auto out = cpu::empty_output(v.sizes(), q.options());
  auto final_state =
      cpu::empty_output({static_cast<int64_t>(sequences.size()), H, K, V}, log_decay.options());
  if (final_state.numel() == 0) return {out, final_state};
  // These own what the parameters point to.
  const auto a = cpu::dense_rows(q), b = cpu::dense_rows(k), c = cpu::dense_rows(v);
  const cpu::DecayOfHeads decay(log_decay, scale.value_or(1 / std::sqrt(static_cast<double>(K))));
  const auto cut = cpu::cut_of(sequences, H, V);
  const auto spans = cpu::segments_of(sequences, cut.segment_length);
  at::Tensor initial = initial_state.value_or(at::Tensor());
  const bool segmented = spans.size() > sequences.size();
  if (segmented) {
    initial = cpu::states_of_segments(kernels, decay, log_decay, spans, b, c, initial);
  }

  const auto slices = cpu::slices_of(cut, spans.size(), H, V);
  const auto params_of = [&](const cpu::Slice& slice) {
    const auto& [n, h, first, width] = slice;
    const auto& span = spans[n];
    retnet::kernels::cpu::ReadoutParams p;
    p.tokens = span.tokens;
    p.inner = K;
    p.outer = width;
    p.a = cpu::rows_of(a, span, h);
    p.b = cpu::rows_of(b, span, h);
    p.c = cpu::rows_of(c, span, h, first);
    p.y = const_cast<void*>(cpu::rows_of(out, span, h, first).ptr);
    p.y_stride = out.stride(1);
    const auto start = cpu::matrix_of(initial, segmented ? n : span.state_row, h);
    if (start.ptr) p.initial = start.ptr + first * start.col;
    p.initial_inner = start.row;
    p.initial_outer = start.col;
    const bool is_last =
        n + 1 == static_cast<int64_t>(spans.size()) || spans[n + 1].state_row != span.state_row;
    if (is_last) {
      const auto end = cpu::matrix_of(final_state, span.state_row, h);
      p.final_state = end.ptr + first;
      p.final_inner = end.row;
      p.final_outer = end.col;
    }
    p.decay = decay[h];
    return p;
  };
  const auto scratch = kernels.readout_scratch(params_of(slices.front()));
  cpu::run_tasks(slices.size(), scratch,
                 [&](int64_t i, void* memory) { kernels.readout(params_of(slices[i]), memory); });
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
  const auto sequences = cpu::sequences_of("retention_plan", q, cu_seqlens);
  if (const char* refusal = cpu::refusal(q, form, chunk_size)) {
    return {"composite", refusal, 0, 0, 0, 0, 0, 0, refusal};
  }
  const auto cut = cpu::cut_of(sequences, q.size(2), v.size(3));
  const auto segments =
      static_cast<int64_t>(cpu::segments_of(sequences, cut.segment_length).size());
  const int64_t copies = (q.stride(3) != 1) + (k.stride(3) != 1) + (v.stride(3) != 1);
  return {std::string("cpu_") + cpu::instruction_set().name,
          "",
          q.size(3),
          std::min(cut.width, v.size(3)),
          retnet::kernels::cpu::kChunk,
          cut.segment_length,
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
