// SPDX-License-Identifier: Apache-2.0
#include "nn/retention_constants.h"

#include <c10/core/InferenceMode.h>

#include <limits>

namespace retnet::nn {

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLimit = 80;
// The last value inside. bfloat16 and float16 represent it, so rounding does not make it an end.
constexpr double kInside = 79.5;
// These replace a configured ln gamma of 0 and -inf, which no factor would change.
constexpr double kReferenceOfOne = -0x1p-10;
constexpr double kReferenceOfZero = -1;

RetentionConstants::Values values_of(const RetNetOptions& options) {
  // Inference mode is off, because a later call could not save inference tensors for backward.
  const c10::InferenceMode normal_mode(false);
  const auto log_decay = options.log_decay();
  auto reference = log_decay.to(torch::kFloat64);
  reference = torch::where(reference == 0, kReferenceOfOne, reference);
  reference = torch::where(reference == -kInfinity, kReferenceOfZero, reference);
  return {log_decay, reference, options.rotary_frequencies()};
}

}  // namespace

torch::Tensor log_decay_of(const torch::Tensor& raw, const torch::Tensor& reference) {
  const auto wide = raw.to(torch::kFloat64);
  const auto zero = wide >= kLimit, one = wide <= -kLimit;
  // An end must give no gradient, not even inf * 0.
  const auto inside = torch::where(zero | one, 0.0, wide);
  const auto value = (reference * inside.exp()).to(torch::kFloat32);
  return torch::where(zero, -kInfinity, torch::where(one, 0.0, value));
}

torch::Tensor raw_of(const torch::Tensor& log_decay, const torch::Tensor& reference) {
  auto raw = torch::log(log_decay.to(torch::kFloat64) / reference).clamp(-kInside, kInside);
  raw = torch::where(log_decay == 0, -kLimit, raw);
  return torch::where(log_decay == -kInfinity, kLimit, raw).to(torch::kFloat32);
}

void check_log_decay(const std::string& name, const torch::Tensor& log_decay) {
  const auto values = log_decay.to(torch::kCPU, torch::kFloat64).contiguous();
  for (int64_t head = 0; head < values.numel(); ++head) {
    const double value = values.const_data_ptr<double>()[head];
    TORCH_CHECK_VALUE(value <= 0, name, " must lie in [-inf, 0], got ", value, " in head ", head);
  }
}

RetentionConstants::RetentionConstants(const RetNetOptions& options) : cpu_(values_of(options)) {}

RetentionConstants::Values RetentionConstants::on(const torch::Device& device) {
  if (device.is_cpu()) return cpu_;
  const std::lock_guard lock(mutex_);
  const auto found = copies_.find(device);
  if (found != copies_.end()) return found->second;
  const c10::InferenceMode normal_mode(false);  // as in values_of
  const Values values = {cpu_.log_decay.to(device), cpu_.reference.to(device),
                         cpu_.frequencies.to(device)};
  copies_.emplace(device, values);
  return values;
}

}  // namespace retnet::nn
