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

/// state <- gamma state + k^T v, row by row.
void update_(at::Tensor& state, const at::Tensor& k, const at::Tensor& v,
             const at::Tensor& log_decay) {
  Decay(log_decay).decay_(state, 1);
  state.addcmul_(k.unsqueeze(-1), v.unsqueeze(-2));
}

at::Tensor multiply_q_state(const at::Tensor& q, const at::Tensor& state, double scale) {
  return at::matmul(q.unsqueeze(-2), state).squeeze(-2).mul_(scale);
}

/// The rows of state that slots name, updated, as a copy [B, H, Dk, Dv] that is also written back.
/// slots are not read on the host. A skipped row takes the token and the slot of the first row that
/// is not, so that several rows write, but all the same values; where every row is skipped, all
/// write back what they have read.
at::Tensor update_rows_(const at::Tensor& state, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& log_decay, const at::Tensor& slots) {
  const auto used = slots.ge(0);
  const auto row = at::where(used, at::arange(slots.size(0), slots.options().dtype(at::kLong)),
                             used.to(at::kInt).argmax());
  const auto slot = slots.index_select(0, row).clamp_min_(0).to(at::kLong);
  const auto before = state.index_select(0, slot);
  auto after = before.clone();
  update_(after, k.index_select(0, row), v.index_select(0, row), log_decay);
  state.index_copy_(0, slot, at::where(used.any(), after, before));
  return after;
}

}  // namespace

at::Tensor accumulate_retention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                     const at::Tensor& log_decay, const at::Tensor& state,
                                     std::optional<double> scale,
                                     const std::optional<at::Tensor>& slots) {
  const double factor = scale ? *scale : 1.0 / std::sqrt(static_cast<double>(q.size(2)));
  // No row, no head, or (with no slot at all) nothing but skipped rows.
  if (v.numel() == 0 || state.numel() == 0) return at::zeros(v.sizes(), v.options());
  if (slots) return multiply_q_state(q, update_rows_(state, k, v, log_decay, *slots), factor);
  auto target = state;
  update_(target, k, v, log_decay);
  return multiply_q_state(q, target, factor);
}

void clear_skipped_rows_(const at::Tensor& out, const std::optional<at::Tensor>& slots) {
  if (slots) out.masked_fill_(slots->lt(0).view({-1, 1, 1}), 0.0);
}

at::Tensor slots_or_rows(const std::optional<at::Tensor>& slots, const at::Tensor& q) {
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
    clear_skipped_rows_(out, slots);
    return out.to(q.scalar_type());
  };
  if (!batch_invariance_required() || q.size(0) == 0) return step(q, k, v, slots);
  const auto row_slots = slots_or_rows(slots, q);
  return each_row(q.size(0), [&](int64_t b) {
    return step(row_of(q, b), row_of(k, b), row_of(v, b), row_of(row_slots, b));
  });
}

}  // namespace composite

TORCH_LIBRARY_IMPL(retnet, CompositeExplicitAutograd, m) {
  m.impl("retention_step", composite::retention_step);
}

}  // namespace retnet::ops
