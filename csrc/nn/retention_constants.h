// SPDX-License-Identifier: Apache-2.0
//
// What a retention layer needs besides its weights.
//
// A learnable ln gamma is reference * exp(raw). The parameter is `raw`. It may have any value, so
// an optimizer cannot move ln gamma out of its range, [-inf, 0]. `reference` is the ln gamma of the
// options, so that raw = 0 reproduces it exactly. raw >= 80 means gamma = 0, and raw <= -80 means
// gamma = 1.
#pragma once

#include <torch/types.h>

#include <mutex>
#include <string>
#include <unordered_map>

#include "nn/options.h"
#include "version.h"

namespace retnet::nn {

/// Returns ln gamma = reference * exp(raw), [H] float32 in [-inf, 0]. raw is [H] of any floating
/// dtype, and reference is [H] float64. Products are computed in float64, so that neither they nor
/// the gradient overflow. At the ends the gradient is exactly 0. NaN stays NaN.
RETNET_API torch::Tensor log_decay_of(const torch::Tensor& raw, const torch::Tensor& reference);

/// Returns the raw [H] float32 that gives ln gamma, which must lie in [-inf, 0]. A finite ln gamma
/// other than 0 does not become an end. It is clamped to exp(79.5) times and exp(-79.5) times the
/// reference.
RETNET_API torch::Tensor raw_of(const torch::Tensor& log_decay, const torch::Tensor& reference);

/// Raises c10::ValueError if any ln gamma [H] is above 0 or NaN. The message begins with `name`.
RETNET_API void check_log_decay(const std::string& name, const torch::Tensor& log_decay);

/// Values that follow from the options, computed once for each device that asks. They are not
/// buffers of the module. torch's C++ modules put every buffer in the state dict and cast it in
/// `to(dtype)`. These values must not be cast and do not belong in files.
class RETNET_API RetentionConstants {
 public:
  struct Values {
    torch::Tensor log_decay;    ///< [H] float32
    torch::Tensor reference;    ///< of a learnable ln gamma, [H] float64, finite and negative
    torch::Tensor frequencies;  ///< [K/2] float32
  };

  explicit RetentionConstants(const RetNetOptions& options);

  /// Returns the values on `device`. Several threads may call it.
  Values on(const torch::Device& device);

 private:
  Values cpu_;
  std::mutex mutex_;
  std::unordered_map<torch::Device, Values> copies_;
};

}  // namespace retnet::nn
