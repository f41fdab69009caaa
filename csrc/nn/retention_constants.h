// SPDX-License-Identifier: Apache-2.0
//
// What a retention layer needs besides its weights.
//
// A learnable ln gamma is reference * exp(raw). `raw`, the parameter, may have any value: an
// optimizer cannot leave [-inf, 0], the range of ln gamma. `reference` is the ln gamma of the
// options, so that raw = 0 gives exactly that. raw >= 80 stands for gamma = 0 and raw <= -80 for
// gamma = 1.
#pragma once

#include <torch/types.h>

#include <mutex>
#include <string>
#include <unordered_map>

#include "nn/options.h"
#include "version.h"

namespace retnet::nn {

/// ln gamma = reference * exp(raw), [H] float32 in [-inf, 0]; raw [H] of any floating dtype,
/// reference [H] float64. Products are float64, so that neither they nor the gradient overflow on
/// the way. At the ends the gradient is exactly 0. NaN stays NaN.
RETNET_API torch::Tensor log_decay_of(const torch::Tensor& raw, const torch::Tensor& reference);

/// The raw [H] float32 that gives ln gamma, which must lie in [-inf, 0]. A finite ln gamma other than
/// 0 does not become an end: beyond exp(79.5) times the reference, or below exp(-79.5) times, that
/// bound is taken.
RETNET_API torch::Tensor raw_of(const torch::Tensor& log_decay, const torch::Tensor& reference);

/// Raises c10::ValueError where a ln gamma [H] is above 0 or NaN; the message begins with `name`.
RETNET_API void check_log_decay(const std::string& name, const torch::Tensor& log_decay);

/// What follows from the options, made once for each device that asks. They are no buffers of the
/// module: torch's C++ modules put every buffer in the state dict and cast it in `to(dtype)`, while
/// these stay as they are and out of files.
class RETNET_API RetentionConstants {
 public:
  struct Values {
    torch::Tensor log_decay;    ///< [H] float32
    torch::Tensor reference;    ///< of a learnable ln gamma, [H] float64, finite and below 0
    torch::Tensor frequencies;  ///< [K/2] float32
  };

  explicit RetentionConstants(const RetNetOptions& options);

  /// The values on `device`. May be called from several threads.
  Values on(const torch::Device& device);

 private:
  Values cpu_;
  std::mutex mutex_;
  std::unordered_map<torch::Device, Values> copies_;
};

}  // namespace retnet::nn
