// SPDX-License-Identifier: Apache-2.0
#include "ops/retention_step.h"

#include <torch/library.h>

#include "ops/composite/retention_step.h"
#include "ops/cpu/decode_step.h"
#include "ops/state.h"

namespace retnet::ops {
namespace {

at::Tensor retention_step_cpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                              const at::Tensor& log_decay, const at::Tensor& state,
                              std::optional<double> scale, const std::optional<at::Tensor>& slots) {
  if (!cpu::supports_decode_step(q, state)) {
    return composite::retention_step(q, k, v, log_decay, state, scale, slots);
  }
  constexpr auto op = "retention_step";
  check_retention_step(op, q, k, v, log_decay, state, slots);
  check_state_memory(op, state, {{"q", q}, {"k", k}, {"v", v}, {"log_decay", log_decay}});
  return cpu::run_decode_step(
      q, k, v, log_decay, state, scale, slots, 0,
      [](int64_t, int64_t, const auto& p, const auto& decode_step, float*) { decode_step(p); });
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CPU, m) { m.impl("retention_step", retention_step_cpu); }

}  // namespace retnet::ops
