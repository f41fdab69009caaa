// SPDX-License-Identifier: Apache-2.0
//
// The decode step in float64 by its definition. It shares no code with the kernel.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace retnet::kernels::cuda {

// q, k [B, H, Dk]; v, gate [B, H, Dv]; weight, bias [H, Dv]; state [S, H, Dk, Dv]; slots [B]; gamma [H].
// Without frequencies there is no rotation. Without a gate there is neither norm nor gate.
struct DecodeStepProblem {
  size_t B = 0, H = 0, Dk = 0, Dv = 0;
  bool interleaved = true, centre = true;
  double scale = 1, eps = 0;
  std::vector<double> q, k, v, gate, weight, bias, gamma, frequencies, state;
  std::vector<int64_t> positions;
  std::vector<int> slots;
};

struct DecodeStepResult {
  std::vector<double> out, state;  // [B, H, Dv]; as in the problem
};

inline DecodeStepResult decode_step_by_definition(const DecodeStepProblem& p) {
  DecodeStepResult r{std::vector<double>(p.B * p.H * p.Dv, 0.0), p.state};
  const auto rotated = [&](const std::vector<double>& x, size_t b, size_t h) {
    std::vector<double> y(x.begin() + (b * p.H + h) * p.Dk, x.begin() + (b * p.H + h + 1) * p.Dk);
    for (size_t i = 0; i < p.frequencies.size(); ++i) {
      const size_t first = p.interleaved ? 2 * i : i;
      const size_t second = p.interleaved ? 2 * i + 1 : i + p.Dk / 2;
      const long double angle = static_cast<long double>(p.positions[b]) * p.frequencies[i];
      const double c = std::cos(angle), s = std::sin(angle), a = y[first], z = y[second];
      y[first] = a * c - z * s;
      y[second] = a * s + z * c;
    }
    return y;
  };
  for (size_t b = 0; b < p.B; ++b) {
    if (p.slots[b] < 0) continue;
    for (size_t h = 0; h < p.H; ++h) {
      const std::vector<double> q = rotated(p.q, b, h), k = rotated(p.k, b, h);
      double* state = &r.state[(p.slots[b] * p.H + h) * p.Dk * p.Dv];
      const size_t row = (b * p.H + h) * p.Dv;
      for (size_t i = 0; i < p.Dk; ++i) {
        for (size_t j = 0; j < p.Dv; ++j) {
          double& s = state[i * p.Dv + j];
          s = (p.gamma[h] == 0 ? 0 : p.gamma[h] * s) + k[i] * p.v[row + j];
          r.out[row + j] += p.scale * q[i] * s;
        }
      }
      if (p.gate.empty()) continue;
      double mean = 0, moment = 0;
      for (size_t j = 0; j < p.Dv; ++j) mean += p.centre ? r.out[row + j] / p.Dv : 0;
      for (size_t j = 0; j < p.Dv; ++j) moment += std::pow(r.out[row + j] - mean, 2) / p.Dv;
      for (size_t j = 0; j < p.Dv; ++j) {
        const double y = (r.out[row + j] - mean) / std::sqrt(moment + p.eps), a = p.gate[row + j];
        r.out[row + j] =
            (y * p.weight[h * p.Dv + j] + p.bias[h * p.Dv + j]) * a / (1 + std::exp(-a));
      }
    }
  }
  return r;
}

}  // namespace retnet::kernels::cuda
