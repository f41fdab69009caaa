// SPDX-License-Identifier: Apache-2.0
//
// What the two steps of decoding share on the CPU.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "cpu/retention.h"
#include "ops/cpu/floats.h"
#include "ops/cpu/instruction_set.h"

namespace retnet::ops::cpu {

/// The kernel takes float32 and 16-bit tokens and a state whose rows are dense.
inline bool takes_step(const at::Tensor& q, const at::Tensor& state) {
  return q.scalar_type() != at::kDouble && state.dim() == 4 && state.stride(3) == 1 &&
         state.numel() > 0 && q.numel() > 0;
}

/// For each row b H + h that slots do not skip, side by side: body(row, params, run, scratch), with
/// params of its state and decay set, and scratch of so many floats; out [B, H, Dv] is cleared where
/// they do. run(params) makes the step.
template <class Body>
void each_step(const at::Tensor& log_decay, const at::Tensor& state, std::optional<double> scale,
               const std::optional<at::Tensor>& slots, int64_t B, const at::Tensor& out,
               int64_t scratch_floats, const Body& body) {
  const auto& set = instruction_set();
  const int64_t H = state.size(1), K = state.size(2), V = state.size(3);
  const auto decays = log_decay.detach().contiguous();
  const auto rows = slots ? slots->contiguous() : at::Tensor();
  const auto factor = static_cast<float>(scale.value_or(1 / std::sqrt(static_cast<double>(K))));
  auto* states = state.mutable_data_ptr<float>();
  auto* outs = out.mutable_data_ptr<float>();
  at::parallel_for(0, B * H, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(scratch_floats);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / H, h = row % H;
      const int64_t slot = slots ? rows.const_data_ptr<int32_t>()[b] : b;
      if (slot < 0) {
        std::fill(outs + row * V, outs + (row + 1) * V, 0.0F);
        continue;
      }
      const double g = decays.const_data_ptr<float>()[h];
      retnet::cpu::StepParams p{};
      p.inner = K;
      p.outer = V;
      p.state = states + slot * state.stride(0) + h * state.stride(1);
      p.state_stride = state.stride(2);
      p.is_zero = g == -std::numeric_limits<double>::infinity();
      p.change = static_cast<float>(std::expm1(g));
      p.scale = factor;
      body(row, p, set.step, scratch.data());
    }
  });
}

}  // namespace retnet::ops::cpu
