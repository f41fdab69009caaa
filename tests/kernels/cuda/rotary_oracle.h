// SPDX-License-Identifier: Apache-2.0
//
// Rotary position embedding in float64 by its definition. It shares no code with the kernel.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace retnet::kernels::cuda {

/// Returns x [B, T, H, Dk], rotated by positions [B, T] and frequencies [Dk / 2]. The angle has the sign `sign`.
inline std::vector<double> rotary_by_definition(const std::vector<double>& x, size_t H, size_t Dk,
                                                const std::vector<int64_t>& positions,
                                                const std::vector<float>& frequencies,
                                                bool interleaved, double sign) {
  std::vector<double> out(x.size());
  for (size_t row = 0; row < positions.size() * H; ++row) {
    for (size_t i = 0; i < Dk / 2; ++i) {
      const double angle = static_cast<double>(positions[row / H]) * frequencies[i];
      const size_t a = row * Dk + (interleaved ? 2 * i : i),
                   b = row * Dk + (interleaved ? 2 * i + 1 : i + Dk / 2);
      out[a] = x[a] * std::cos(angle) - sign * x[b] * std::sin(angle);
      out[b] = sign * x[a] * std::sin(angle) + x[b] * std::cos(angle);
    }
  }
  return out;
}

/// Computes the same in the precision of the composite: float32, with cosine and sine rounded to float32.
inline std::vector<double> rotary_in_float(const std::vector<double>& x, size_t H, size_t Dk,
                                           const std::vector<int64_t>& positions,
                                           const std::vector<float>& frequencies, bool interleaved,
                                           double sign) {
  std::vector<double> out(x.size());
  for (size_t row = 0; row < positions.size() * H; ++row) {
    for (size_t i = 0; i < Dk / 2; ++i) {
      const double angle = static_cast<double>(positions[row / H]) * frequencies[i];
      const auto cos = static_cast<float>(std::cos(angle));
      const auto sin = static_cast<float>(sign * std::sin(angle));
      const size_t a = row * Dk + (interleaved ? 2 * i : i),
                   b = row * Dk + (interleaved ? 2 * i + 1 : i + Dk / 2);
      const auto xa = static_cast<float>(x[a]), xb = static_cast<float>(x[b]);
      const float ac = xa * cos, bs = xb * sin, as = xa * sin, bc = xb * cos;
      out[a] = ac - bs;
      out[b] = as + bc;
    }
  }
  return out;
}

}  // namespace retnet::kernels::cuda
