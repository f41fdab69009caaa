// SPDX-License-Identifier: Apache-2.0
//
// Gated group norm and its gradients in float64 by their definition. It shares no code with the kernels.
#pragma once

#include <cmath>
#include <cstddef>
#include <vector>

namespace retnet::kernels::cuda {

// x, gate, grad_out [N, H, Dv]; weight and bias [H, Dv]. An empty gate means no gate.
struct GatedGroupNormProblem {
  size_t N = 0, H = 0, Dv = 0;
  bool centre = true;  // layer norm, or otherwise rms norm
  double eps = 0;
  std::vector<double> x, gate, weight, bias, grad_out;
};

struct GatedGroupNormResult {
  std::vector<double> out, grad_x, grad_gate;  // [N, H, Dv]
  std::vector<double> grad_weight, grad_bias;  // [H, Dv]
};

inline double logistic(double a) { return 1 / (1 + std::exp(-a)); }

inline GatedGroupNormResult gated_group_norm_by_definition(const GatedGroupNormProblem& p) {
  GatedGroupNormResult r;
  r.out.resize(p.x.size());
  r.grad_x.resize(p.x.size());
  r.grad_gate.resize(p.gate.size());
  r.grad_weight.resize(p.H * p.Dv);
  r.grad_bias.resize(p.H * p.Dv);
  const auto Dv = static_cast<double>(p.Dv);
  for (size_t n = 0; n < p.N; ++n) {
    for (size_t h = 0; h < p.H; ++h) {
      const size_t row = (n * p.H + h) * p.Dv;
      double mean = 0;
      for (size_t v = 0; v < p.Dv; ++v) mean += p.centre ? p.x[row + v] / Dv : 0;
      double variance = 0;
      for (size_t v = 0; v < p.Dv; ++v) variance += std::pow(p.x[row + v] - mean, 2) / Dv;
      const double deviation = std::sqrt(variance + p.eps);

      // Backwards from out = affine swish(gate), affine = y weight + bias, y = (x - mean) /
      // deviation: the gradient of each intermediate value in turn.
      std::vector<double> grad_centred(p.Dv);
      double grad_deviation = 0;
      for (size_t v = 0; v < p.Dv; ++v) {
        const size_t i = row + v, w = h * p.Dv + v;
        const double centred = p.x[i] - mean;
        const double y = centred / deviation;
        const double affine = y * p.weight[w] + p.bias[w];
        double swish = 1;
        if (!p.gate.empty()) {
          const double a = p.gate[i], s = logistic(a);
          swish = a * s;
          r.grad_gate[i] = p.grad_out[i] * affine * (s + a * s * (1 - s));
        }
        r.out[i] = affine * swish;
        const double grad_affine = p.grad_out[i] * swish;
        r.grad_weight[w] += grad_affine * y;
        r.grad_bias[w] += grad_affine;
        const double grad_y = grad_affine * p.weight[w];
        grad_centred[v] = grad_y / deviation;
        grad_deviation -= grad_y * centred / (deviation * deviation);
      }
      const double grad_variance = grad_deviation / (2 * deviation);
      double grad_mean = 0;
      for (size_t v = 0; v < p.Dv; ++v) {
        grad_centred[v] += grad_variance * 2 * (p.x[row + v] - mean) / Dv;
        grad_mean -= grad_centred[v];
      }
      for (size_t v = 0; v < p.Dv; ++v) {
        r.grad_x[row + v] = grad_centred[v] + (p.centre ? grad_mean / Dv : 0);
      }
    }
  }
  return r;
}

}  // namespace retnet::kernels::cuda
