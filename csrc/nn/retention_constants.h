// SPDX-License-Identifier: Apache-2.0
//
// What a retention layer needs besides its parameters.
#pragma once

#include <torch/types.h>

#include <mutex>
#include <unordered_map>

#include "nn/options.h"

namespace retnet::nn {

/// ln gamma and the rotary frequencies that follow from the options, made once for each device that
/// asks. They are no buffers of the module: torch's C++ modules put every buffer in the state dict
/// and cast it in `to(dtype)`, while these stay float32 and out of files.
class RetentionConstants {
 public:
  struct Values {
    torch::Tensor log_decay;    ///< [H] float32
    torch::Tensor frequencies;  ///< [K/2] float32
  };

  explicit RetentionConstants(const RetNetOptions& options)
      : cpu_{options.log_decay(), options.rotary_frequencies()} {}

  /// The values on `device`. May be called from several threads.
  Values on(const torch::Device& device);

 private:
  Values cpu_;
  std::mutex mutex_;
  std::unordered_map<torch::Device, Values> copies_;
};

}  // namespace retnet::nn
