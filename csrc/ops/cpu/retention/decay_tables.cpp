// SPDX-License-Identifier: Apache-2.0
#include "ops/cpu/retention/decay_tables.h"

#include <cmath>
#include <limits>
#include <utility>

namespace retnet::ops::cpu {

HeadDecayTables::HeadDecayTables(const at::Tensor& log_decay, double scale) {
  using retnet::kernels::cpu::kChunk;
  const auto values = log_decay.detach().contiguous();
  constexpr int64_t kPowers = kChunk + 1, kWeights = 2 * kChunk;
  constexpr int64_t kFloats = 3 * kPowers + kChunk + 3 * kWeights;
  memory_.resize(values.numel() * kFloats);  // zeros
  auto* at = memory_.data();
  const auto take = [&](int64_t n) { return std::exchange(at, at + n); };
  for (int64_t h = 0; h < values.numel(); ++h) {
    const double g = values.const_data_ptr<float>()[h];
    float *power = take(kPowers), *power_minus_one = take(kPowers),
          *power_derivative = take(kPowers), *state_weight = take(kChunk),
          *score_weight = take(kWeights), *score_weight_transposed = take(kWeights),
          *score_weight_derivative = take(kWeights);
    for (int64_t n = 0; n <= kChunk; ++n) {
      // 0 * -inf is NaN, and gamma^0 is 1 for gamma = 0 too.
      const auto exponent = static_cast<double>(n);
      const double exact = n == 0 ? 1 : std::exp(exponent * g);
      power[n] = static_cast<float>(exact);
      power_minus_one[n] = n == 0 ? 0 : static_cast<float>(std::expm1(exponent * g));
      power_derivative[n] = static_cast<float>(exponent * exact);
      if (n > 0) state_weight[n - 1] = static_cast<float>(scale * exact);
      if (n == kChunk) break;
      const auto weight = static_cast<float>(scale * exact);
      score_weight[kChunk - 1 - n] = score_weight_transposed[kChunk - 1 + n] = weight;
      score_weight_derivative[kChunk - 1 - n] = static_cast<float>(scale * exponent * exact);
    }
    const bool gamma_is_zero = g == -std::numeric_limits<double>::infinity();
    tables_.push_back({gamma_is_zero, power, power_minus_one, state_weight, score_weight,
                       score_weight_transposed, power_derivative, score_weight_derivative});
  }
}

}  // namespace retnet::ops::cpu
