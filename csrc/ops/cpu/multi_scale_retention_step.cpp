// SPDX-License-Identifier: Apache-2.0
#include "ops/multi_scale_retention_step.h"

#include <torch/library.h>

#include <vector>

#include "ops/composite/multi_scale_retention_step.h"
#include "ops/cpu/floats.h"
#include "ops/cpu/step.h"

namespace retnet::ops {
namespace {

/// Cosines and sines of a position for each row of the batch, [B, Dk/2] each.
struct Turns {
  Turns(const at::Tensor& positions, const at::Tensor& frequencies)
      : pairs(frequencies.numel()), cos(positions.numel() * pairs), sin(cos.size()) {
    const auto at = positions.to(at::kLong).contiguous(), f = frequencies.contiguous();
    for (int64_t b = 0; b < at.numel(); ++b) {
      cpu::instruction_set().cos_sin({pairs, static_cast<double>(at.const_data_ptr<int64_t>()[b]),
                                      f.const_data_ptr<float>(), cos.data() + b * pairs,
                                      sin.data() + b * pairs});
    }
  }
  int64_t pairs;
  std::vector<float> cos, sin;
};

at::Tensor multi_scale_retention_step_cpu(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
    const at::Tensor& log_decay, const at::Tensor& state, const at::Tensor& positions,
    const at::Tensor& frequencies, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double eps, std::string_view norm,
    std::string_view style, std::optional<double> scale, const std::optional<at::Tensor>& slots) {
  if (!cpu::takes_step(q, state)) {
    return composite::multi_scale_retention_step(q, k, v, gate, log_decay, state, positions,
                                                 frequencies, weight, bias, eps, norm, style, scale,
                                                 slots);
  }
  check_multi_scale_retention_step(q, k, v, gate, log_decay, state, positions, frequencies, weight,
                                   bias, eps, norm, style, slots);
  composite::check_step_memory(q, k, v, gate, log_decay, state, frequencies, weight, bias);
  const int64_t H = q.size(1), K = q.size(2), V = v.size(2);
  const auto affine_of = [](const std::optional<at::Tensor>& x) {
    return x ? std::optional<cpu::Floats>(*x) : std::nullopt;
  };
  const auto weights = affine_of(weight), biases = affine_of(bias);
  // [Dv] is the same in every head.
  const auto affine_row = [&](const std::optional<cpu::Floats>& x,
                              const std::optional<at::Tensor>& of, int64_t h) {
    return x ? x->row(of->dim() == 2 ? h : 0, V) : nullptr;
  };
  const Turns turns(positions, frequencies);
  const auto& set = cpu::instruction_set();
  const cpu::FloatRows gates(set, gate);
  const auto body = [&](int64_t row, const auto& p, const auto& run, float* scratch) {
    const int64_t b = row / H, h = row % H;
    float *rotated_q = scratch, *rotated_k = rotated_q + K, *retained = rotated_k + K,
          *gate_row = retained + V;
    const auto turn = [&](const float* x, float* to) {
      set.float32.rotary({turns.pairs, style == "interleaved", turns.cos.data() + b * turns.pairs,
                          turns.sin.data() + b * turns.pairs, x, to});
    };
    turn(p.q, rotated_q);
    turn(p.k, rotated_k);
    auto rotated = p;
    rotated.q = rotated_q;
    rotated.k = rotated_k;
    rotated.out = retained;
    run(rotated);
    gates.load(row, gate_row);
    set.float32.gated_norm({V, static_cast<float>(eps), norm == "layer", retained, gate_row,
                            affine_row(weights, weight, h), affine_row(biases, bias, h), p.out});
  };
  return cpu::each_step(q, k, v, log_decay, state, scale, slots, 2 * K + 2 * V, body);
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CPU, m) {
  m.impl("multi_scale_retention_step", multi_scale_retention_step_cpu);
}

}  // namespace retnet::ops
