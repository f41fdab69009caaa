// SPDX-License-Identifier: Apache-2.0
#include "ops/multi_scale_retention_step.h"

#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include "ops/composite/batch_invariance.h"
#include "ops/composite/gated_group_norm.h"
#include "ops/composite/multi_scale_retention_step.h"
#include "ops/composite/retention_step.h"
#include "ops/composite/rotary.h"
#include "ops/state.h"

namespace retnet::ops {
namespace composite {

void check_step_memory(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const at::Tensor& gate, const at::Tensor& log_decay, const at::Tensor& state,
                       const at::Tensor& frequencies, const std::optional<at::Tensor>& weight,
                       const std::optional<at::Tensor>& bias) {
  const at::Tensor none;
  check_state_memory("multi_scale_retention_step", state,
                     {{"q", q},
                      {"k", k},
                      {"v", v},
                      {"gate", gate},
                      {"log_decay", log_decay},
                      {"frequencies", frequencies},
                      {"weight", weight ? *weight : none},
                      {"bias", bias ? *bias : none}});
}

at::Tensor multi_scale_retention_step(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
    const at::Tensor& log_decay, const at::Tensor& state, const at::Tensor& positions,
    const at::Tensor& frequencies, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double eps, std::string_view norm,
    std::string_view style, std::optional<double> scale, const std::optional<at::Tensor>& slots) {
  check_multi_scale_retention_step(q, k, v, gate, log_decay, state, positions, frequencies, weight,
                                   bias, eps, norm, style, slots);
  // gate, weight and bias are read after the state has been written.
  check_step_memory(q, k, v, gate, log_decay, state, frequencies, weight, bias);
  const auto step = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& gate, const at::Tensor& positions,
                        const std::optional<at::Tensor>& slots) {
    const auto dtype = state.scalar_type();
    const auto rotation = rotation_of(positions, frequencies, style, dtype);
    const auto retained =
        accumulate_retention_step(rotate(q, rotation, dtype), rotate(k, rotation, dtype),
                                  v.to(dtype), log_decay, state, scale, slots);
    const auto out = accumulate_gated_group_norm(retained, gate, weight, bias, eps, norm);
    clear_skipped_(out, slots);
    return out.to(q.scalar_type()).contiguous();
  };
  if (!batch_invariance_required() || q.size(0) == 0) return step(q, k, v, gate, positions, slots);
  const auto all_slots = slots_or_batch_entries(slots, q);
  return each_batch_entry(q.size(0), [&](int64_t b) {
    return step(batch_entry(q, b), batch_entry(k, b), batch_entry(v, b), batch_entry(gate, b),
                batch_entry(positions, b), batch_entry(all_slots, b));
  });
}

}  // namespace composite

TORCH_LIBRARY_IMPL(retnet, CompositeExplicitAutograd, m) {
  m.impl("multi_scale_retention_step", composite::multi_scale_retention_step);
}

}  // namespace retnet::ops
