// SPDX-License-Identifier: Apache-2.0
#include "ops/multi_scale_retention_step.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <vector>

#include "ops/composite/multi_scale_retention_step.h"
#include "ops/cpu/step.h"

namespace retnet::ops {
namespace {

/// The turn of every position: [B, Dk/2] pairs of cosine and sine, angles in float64.
struct Turns {
  Turns(const at::Tensor& positions, const at::Tensor& frequencies, std::string_view style)
      : pairs(frequencies.numel()), interleaved(style == "interleaved") {
    const auto at = positions.to(at::kLong).contiguous();
    const auto f = frequencies.contiguous();
    for (int64_t b = 0; b < at.numel(); ++b) {
      for (int64_t i = 0; i < pairs; ++i) {
        const double angle = static_cast<double>(at.const_data_ptr<int64_t>()[b]) *
                             static_cast<double>(f.const_data_ptr<float>()[i]);
        cos_sin.push_back(static_cast<float>(std::cos(angle)));
        cos_sin.push_back(static_cast<float>(std::sin(angle)));
      }
    }
  }

  /// x [Dk] turned as row b of the batch.
  void turn(int64_t b, const float* x, float* to) const {
    const float* c = cos_sin.data() + b * 2 * pairs;
    for (int64_t i = 0; i < pairs; ++i) {
      const int64_t first = interleaved ? 2 * i : i, second = interleaved ? 2 * i + 1 : i + pairs;
      to[first] = x[first] * c[2 * i] - x[second] * c[2 * i + 1];
      to[second] = x[first] * c[2 * i + 1] + x[second] * c[2 * i];
    }
  }

  int64_t pairs;
  bool interleaved;
  std::vector<float> cos_sin;
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
  const cpu::Floats queries(q), keys(k), values(v), gates(gate);
  const auto affine_of = [](const std::optional<at::Tensor>& x) {
    return x ? std::optional<cpu::Floats>(*x) : std::nullopt;
  };
  const auto weights = affine_of(weight), biases = affine_of(bias);
  // [Dv] is the same in every head.
  const auto affine_row = [&](const std::optional<cpu::Floats>& x,
                              const std::optional<at::Tensor>& of, int64_t h) {
    return x ? x->row(of->dim() == 2 ? h : 0, V) : nullptr;
  };
  const Turns turns(positions, frequencies, style);
  const auto gated_norm = cpu::instruction_set().float32.gated_norm;
  auto out = at::empty({q.size(0), H, V}, q.options().dtype(at::kFloat));
  cpu::each_step(
      log_decay, state, scale, slots, q.size(0), out, 2 * K + V,
      [&](int64_t row, auto& p, const auto& run, float* scratch) {
        const int64_t b = row / H, h = row % H;
        float *rotated_q = scratch, *rotated_k = scratch + K, *retained = scratch + 2 * K;
        turns.turn(b, queries.row(row, K), rotated_q);
        turns.turn(b, keys.row(row, K), rotated_k);
        p.q = rotated_q;
        p.k = rotated_k;
        p.v = values.row(row, V);
        p.out = retained;
        run(p);
        gated_norm({V, static_cast<float>(eps), norm == "layer", retained, gates.row(row, V),
                    affine_row(weights, weight, h), affine_row(biases, bias, h),
                    out.mutable_data_ptr<float>() + row * V});
      });
  return out.to(q.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CPU, m) {
  m.impl("multi_scale_retention_step", multi_scale_retention_step_cpu);
}

}  // namespace retnet::ops
