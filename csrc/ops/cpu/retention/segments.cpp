// SPDX-License-Identifier: Apache-2.0
//
// The boundary states of segments of a sequence. Three steps, as in the CUDA kernel: the local end
// state of each segment, from zeros, side by side; a scan over the segments; and then, by the
// caller, each segment from its boundary state.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <cmath>

#include "ops/cpu/parallel.h"
#include "ops/cpu/retention/retention.h"

namespace retnet::ops::cpu {
namespace {

/// to <- to + gamma^n from, by expm1 as everywhere a state decays.
void add_decayed(float* to, const float* from, int64_t elements,
                 const retnet::kernels::cpu::DecayTables& h, double log_decay, int64_t n) {
  if (h.is_zero && n > 0) return;
  const auto change =
      n == 0 ? 0.0F : static_cast<float>(std::expm1(static_cast<double>(n) * log_decay));
  for (int64_t i = 0; i < elements; ++i) to[i] += from[i] + from[i] * change;
}

/// Entry n of the result: `boundary` where segment n begins its sequence (in reverse: ends it),
/// else the state that the segment before it leaves. local(n, h, state) writes segment n's own.
template <class Local>
at::Tensor scan(const DecayOfHeads& decay, const at::Tensor& log_decay,
                const std::vector<Span>& segments, const at::Tensor& boundary, int64_t K, int64_t V,
                bool reverse, size_t scratch_bytes, const Local& local) {
  const auto N = static_cast<int64_t>(segments.size()), H = log_decay.size(0);
  auto result = at::empty({N, H, K, V}, log_decay.options());
  const int64_t step = reverse ? -1 : 1;
  // The segment that goes on where n stops, or -1.
  const auto next_of = [&](int64_t n) {
    const int64_t next = n + step;
    const bool goes_on = next >= 0 && next < N && segments[next].state_row == segments[n].state_row;
    return goes_on ? next : -1;
  };
  auto* states = result.mutable_data_ptr<float>();
  const auto state_of = [&](int64_t n, int64_t h) { return states + (n * H + h) * K * V; };
  run_tasks(N * H, scratch_bytes, [&](int64_t task, void* scratch) {
    const int64_t next = next_of(task / H);
    if (next >= 0) local(task / H, task % H, state_of(next, task % H), scratch);
  });
  const auto g = log_decay.detach().contiguous();
  at::parallel_for(0, H, 1, [&](int64_t begin, int64_t end) {
    for (int64_t h = begin; h < end; ++h) {
      for (int64_t i = 0; i < N; ++i) {
        const int64_t n = reverse ? N - 1 - i : i;
        if (i == 0 || next_of(n - step) < 0) {  // the first of its sequence
          const auto from = matrix_of(boundary, segments[n].state_row, h);
          for (int64_t k = 0; k < K; ++k) {
            for (int64_t v = 0; v < V; ++v) {
              state_of(n, h)[k * V + v] = from.ptr ? from.ptr[k * from.row + v * from.col] : 0.0F;
            }
          }
        }
        const int64_t next = next_of(n);
        if (next < 0) continue;
        add_decayed(state_of(next, h), state_of(n, h), K * V, decay[h],
                    g.const_data_ptr<float>()[h], segments[n].tokens);
      }
    }
  });
  return result;
}

}  // namespace

at::Tensor states_of_segments(const retnet::kernels::cpu::Kernels& kernels,
                              const DecayOfHeads& decay, const at::Tensor& log_decay,
                              const std::vector<Span>& segments, const at::Tensor& k,
                              const at::Tensor& v, const at::Tensor& initial_state) {
  retnet::kernels::cpu::ReadoutParams shape;
  shape.inner = k.size(3);
  shape.outer = v.size(3);
  return scan(decay, log_decay, segments, initial_state, shape.inner, shape.outer, false,
              kernels.readout_scratch(shape), [&](int64_t n, int64_t h, float* end, void* scratch) {
                auto p = shape;
                p.tokens = segments[n].tokens;
                p.b = rows_of(k, segments[n], h);
                p.c = rows_of(v, segments[n], h);
                p.final_state = end;
                p.final_inner = p.outer;
                p.final_outer = 1;
                p.decay = decay[h];
                kernels.readout(p, scratch);
              });
}

at::Tensor adjoints_of_segments(const retnet::kernels::cpu::Kernels& kernels,
                                const DecayOfHeads& decay, const at::Tensor& log_decay,
                                const std::vector<Span>& segments, const at::Tensor& q,
                                const at::Tensor& grad_out, const at::Tensor& grad_state) {
  retnet::kernels::cpu::UpdateParams shape;
  shape.inner = q.size(3);
  shape.outer = (grad_out.defined() ? grad_out : grad_state).size(3);
  return scan(decay, log_decay, segments, grad_state, shape.inner, shape.outer, true,
              kernels.update_scratch(shape),
              [&](int64_t n, int64_t h, float* start, void* scratch) {
                auto p = shape;
                p.tokens = segments[n].tokens;
                p.q = rows_of(q, segments[n], h);
                p.grad_out = rows_of(grad_out, segments[n], h);
                p.grad_initial = start;
                p.grad_initial_inner = p.outer;
                p.decay = decay[h];
                kernels.update(p, scratch);
              });
}

}  // namespace retnet::ops::cpu
