// SPDX-License-Identifier: Apache-2.0
#include "ops/multi_scale_retention_step.h"

#include <torch/library.h>

#include <vector>

#include "ops/composite/multi_scale_retention_step.h"
#include "ops/cpu/affine.h"
#include "ops/cpu/decode_step.h"

namespace retnet::ops {
namespace {

using retnet::kernels::cpu::Norm;

/// The cosines and sines of the position of each entry of the batch, [B, Dk/2] each.
struct Rotations {
  Rotations(const at::Tensor& positions, const at::Tensor& frequencies)
      : pairs(frequencies.numel()), cos(positions.numel() * pairs), sin(cos.size()) {
    const auto dense_positions = positions.to(at::kLong).contiguous(),
               dense_frequencies = frequencies.contiguous();
    for (int64_t b = 0; b < dense_positions.numel(); ++b) {
      cpu::instruction_set().cos_sin(
          {pairs, static_cast<double>(dense_positions.const_data_ptr<int64_t>()[b]),
           dense_frequencies.const_data_ptr<float>(), cos.data() + b * pairs,
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
  if (!cpu::supports_decode_step(q, state)) {
    return composite::multi_scale_retention_step(q, k, v, gate, log_decay, state, positions,
                                                 frequencies, weight, bias, eps, norm, style, scale,
                                                 slots);
  }
  check_multi_scale_retention_step(q, k, v, gate, log_decay, state, positions, frequencies, weight,
                                   bias, eps, norm, style, slots);
  composite::check_step_memory(q, k, v, gate, log_decay, state, frequencies, weight, bias);
  const int64_t Dk = q.size(2), Dv = v.size(2);
  const cpu::Affine dense_weight(weight), dense_bias(bias);
  const Rotations rotations(positions, frequencies);
  const auto norm_kind = norm == "layer" ? Norm::kLayer : Norm::kRms;
  const auto& set = cpu::instruction_set();
  const cpu::FloatTokens gate_tokens(set, gate);
  const auto body = [&](int64_t b, int64_t h, const auto& p, const auto& decode_step,
                        float* workspace) {
    float *rotated_q = workspace, *rotated_k = rotated_q + Dk, *retained = rotated_k + Dk,
          *own_gate = retained + Dv;
    const auto rotate = [&](const float* x, float* out) {
      set.float32.rotary({rotations.pairs, style == "interleaved",
                          rotations.cos.data() + b * rotations.pairs,
                          rotations.sin.data() + b * rotations.pairs, x, out});
    };
    rotate(p.q, rotated_q);
    rotate(p.k, rotated_k);
    auto rotated = p;
    rotated.q = rotated_q;
    rotated.k = rotated_k;
    rotated.out = retained;
    decode_step(rotated);
    gate_tokens.load(b, h, own_gate);
    set.float32.gated_group_norm({Dv, norm_kind, static_cast<float>(eps), retained, own_gate,
                                  dense_weight.of_head(h), dense_bias.of_head(h), p.out});
  };
  return cpu::run_decode_step(q, k, v, log_decay, state, scale, slots, 2 * Dk + 2 * Dv, body);
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CPU, m) {
  m.impl("multi_scale_retention_step", multi_scale_retention_step_cpu);
}

}  // namespace retnet::ops
