// SPDX-License-Identifier: Apache-2.0
#include "ops/composite/retention_step.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/argmax.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>

#include "ops/check.h"
#include "ops/composite/batch_invariance.h"
#include "ops/composite/decay.h"
#include "ops/retention_step.h"
#include "ops/state.h"

namespace retnet::ops {
namespace composite {
namespace {

/// state <- gamma state + k^T v, for each batch entry and head.
void update_(at::Tensor& state, const at::Tensor& k, const at::Tensor& v,
             const at::Tensor& log_decay) {
  Decay(log_decay).decay_(state, 1);
  state.addcmul_(k.unsqueeze(-1), v.unsqueeze(-2));
}

at::Tensor multiply_q_state(const at::Tensor& q, const at::Tensor& state, double scale) {
  return at::matmul(q.unsqueeze(-2), state).squeeze(-2).mul_(scale);
}

/// Updates the states that slots name. Returns them as a copy [B, H, Dk, Dv], which is also written
/// back. slots are not read on the host:
///
/// - A skipped batch entry takes the token and the slot of the first one that is not skipped. Several
///   entries then write one state, all with the same values.
/// - If all entries are skipped, they write back what they have read.
at::Tensor update_slots_(const at::Tensor& state, const at::Tensor& k, const at::Tensor& v,
                         const at::Tensor& log_decay, const at::Tensor& slots) {
  const auto used = slots.ge(0);
  const auto entry = at::where(used, at::arange(slots.size(0), slots.options().dtype(at::kLong)),
                               used.to(at::kInt).argmax());
  const auto slot = slots.index_select(0, entry).clamp_min_(0).to(at::kLong);
  const auto before = state.index_select(0, slot);
  auto after = before.clone();
  update_(after, k.index_select(0, entry), v.index_select(0, entry), log_decay);
  state.index_copy_(0, slot, at::where(used.any(), after, before));
  return after;
}

}  // namespace

at::Tensor accumulate_retention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const at::Tensor& log_decay, const at::Tensor& state,
                                     std::optional<double> scale,
                                     const std::optional<at::Tensor>& slots) {
  const double factor = scale ? *scale : 1.0 / std::sqrt(static_cast<double>(q.size(2)));
  // There is no batch entry, no head, or no slot at all, so that all entries are skipped.
  if (v.numel() == 0 || state.numel() == 0) return at::zeros(v.sizes(), v.options());
  if (slots) return multiply_q_state(q, update_slots_(state, k, v, log_decay, *slots), factor);
  auto target = state;
  update_(target, k, v, log_decay);
  return multiply_q_state(q, target, factor);
}

void clear_skipped_(const at::Tensor& out, const std::optional<at::Tensor>& slots) {
  if (slots) out.masked_fill_(slots->lt(0).view({-1, 1, 1}), 0.0);
}

at::Tensor slots_or_batch_entries(const std::optional<at::Tensor>& slots, const at::Tensor& q) {
  return slots ? *slots : at::arange(q.size(0), q.options().dtype(at::kInt));
}

at::Tensor retention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& log_decay, const at::Tensor& state,
                          std::optional<double> scale, const std::optional<at::Tensor>& slots) {
  constexpr auto op = "retention_step";
  check_retention_step(op, q, k, v, log_decay, state, slots);
  check_state_memory(op, state, {{"q", q}, {"k", k}, {"v", v}, {"log_decay", log_decay}});
  const auto step = [&](const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const std::optional<at::Tensor>& slots) {
    const auto dtype = state.scalar_type();
    const auto out = accumulate_retention_step(q.to(dtype), k.to(dtype), v.to(dtype), log_decay,
                                               state, scale, slots);
    clear_skipped_(out, slots);
    return out.to(q.scalar_type());
  };
  if (!batch_invariance_required() || q.size(0) == 0) return step(q, k, v, slots);
  const auto all_slots = slots_or_batch_entries(slots, q);
  return each_batch_entry(q.size(0), [&](int64_t b) {
    return step(batch_entry(q, b), batch_entry(k, b), batch_entry(v, b), batch_entry(all_slots, b));
  });
}

}  // namespace composite

TORCH_LIBRARY_IMPL(retnet, CompositeExplicitAutograd, m) {
  m.impl("retention_step", composite::retention_step);
}

}  // namespace retnet::ops
