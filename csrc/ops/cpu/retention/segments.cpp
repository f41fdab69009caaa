// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/retention/segments.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <cmath>

#include "ops/cpu/parallel.h"
#include "ops/cpu/retention/views.h"

namespace retnet::ops::cpu {
namespace {

/// to <- to + from + (gamma^n - 1) from
void add_decayed(float* to, const float* from, int64_t elements,
                 const retnet::kernels::cpu::DecayTables& decay, double log_decay, int64_t n) {
  if (decay.gamma_is_zero && n > 0) return;
  const auto power_minus_one =
      n == 0 ? 0.0F : static_cast<float>(std::expm1(static_cast<double>(n) * log_decay));
  for (int64_t i = 0; i < elements; ++i) to[i] += from[i] + from[i] * power_minus_one;
}

/// Entry n of the result is the state with which segment n begins (or ends, in reverse). That is
/// `boundary` for the first segment of a sequence, and otherwise the state that the segment before
/// leaves. local(n, h, state, workspace) writes the state that segment n leaves if it begins with
/// zeros.
template <class Local>
at::Tensor scan_states(const HeadDecayTables& decay, const at::Tensor& log_decay,
                       const std::vector<Segment>& segments, const at::Tensor& boundary, int64_t Dk,
                       int64_t Dv, bool reverse, size_t workspace_bytes, const Local& local) {
  const auto N = static_cast<int64_t>(segments.size()), H = log_decay.size(0);
  auto result = at::empty({N, H, Dk, Dv}, log_decay.options());
  const int64_t direction = reverse ? -1 : 1;
  // The segment that continues the sequence of segment n, or -1.
  const auto next_segment = [&](int64_t n) {
    const int64_t next = n + direction;
    const bool continues = next >= 0 && next < N && segments[next].sequence == segments[n].sequence;
    return continues ? next : -1;
  };
  auto* states = result.mutable_data_ptr<float>();
  const auto state = [&](int64_t n, int64_t h) { return states + (n * H + h) * Dk * Dv; };
  run_tasks(N * H, workspace_bytes, [&](int64_t task, void* workspace) {
    const int64_t next = next_segment(task / H);
    if (next >= 0) local(task / H, task % H, state(next, task % H), workspace);
  });
  const auto g = log_decay.detach().contiguous();
  at::parallel_for(0, H, 1, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      for (int64_t i = 0; i < N; ++i) {
        const int64_t n = reverse ? N - 1 - i : i;
        if (i == 0 || next_segment(n - direction) < 0) {  // the first of its sequence
          const auto from = state_view(boundary, segments[n].sequence, h);
          for (int64_t k = 0; k < Dk; ++k) {
            for (int64_t v = 0; v < Dv; ++v) {
              state(n, h)[k * Dv + v] =
                  from.ptr ? from.ptr[k * from.row_stride + v * from.column_stride] : 0.0F;
            }
          }
        }
        const int64_t next = next_segment(n);
        if (next < 0) continue;
        add_decayed(state(next, h), state(n, h), Dk * Dv, decay[h], g.const_data_ptr<float>()[h],
                    segments[n].tokens);
      }
    }
  });
  return result;
}

}  // namespace

at::Tensor segment_initial_states(const retnet::kernels::cpu::KernelTable& kernels,
                                  const HeadDecayTables& decay, const at::Tensor& log_decay,
                                  const std::vector<Segment>& segments, const at::Tensor& k,
                                  const at::Tensor& v, const at::Tensor& initial_state) {
  retnet::kernels::cpu::RetentionForwardParams shape;
  shape.head_dim_qk = k.size(3);
  shape.head_dim_v = v.size(3);
  return scan_states(decay, log_decay, segments, initial_state, shape.head_dim_qk, shape.head_dim_v,
                     /*reverse=*/false, kernels.retention_forward_workspace_bytes(shape),
                     [&](int64_t n, int64_t h, float* final_state, void* workspace) {
                       auto p = shape;
                       p.tokens = segments[n].tokens;
                       p.k = make_token_view(k, segments[n], h);
                       p.v = make_token_view(v, segments[n], h);
                       p.final_state = {final_state, p.head_dim_v, 1};
                       p.decay = decay[h];
                       kernels.retention_forward(p, workspace);
                     });
}

at::Tensor segment_grad_final_states(const retnet::kernels::cpu::KernelTable& kernels,
                                     const HeadDecayTables& decay, const at::Tensor& log_decay,
                                     const std::vector<Segment>& segments, const at::Tensor& q,
                                     const at::Tensor& grad_out,
                                     const at::Tensor& grad_final_state) {
  retnet::kernels::cpu::RetentionBackwardParams shape;
  shape.head_dim_qk = q.size(3);
  shape.head_dim_v = (grad_out.defined() ? grad_out : grad_final_state).size(3);
  return scan_states(decay, log_decay, segments, grad_final_state, shape.head_dim_qk,
                     shape.head_dim_v, /*reverse=*/true,
                     kernels.retention_backward_workspace_bytes(shape),
                     [&](int64_t n, int64_t h, float* grad_initial_state, void* workspace) {
                       auto p = shape;
                       p.tokens = segments[n].tokens;
                       p.q = make_token_view(q, segments[n], h);
                       p.grad_out = make_token_view(grad_out, segments[n], h);
                       p.grad_initial_state = {grad_initial_state, p.head_dim_v, 1};
                       p.decay = decay[h];
                       kernels.retention_backward(p, workspace);
                     });
}

}  // namespace retnet::ops::cpu
