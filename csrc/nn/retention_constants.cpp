// SPDX-License-Identifier: Apache-2.0
#include "nn/retention_constants.h"

#include <c10/core/InferenceMode.h>

namespace retnet::nn {

RetentionConstants::Values RetentionConstants::on(const torch::Device& device) {
  if (device.is_cpu()) return cpu_;
  const std::lock_guard lock(mutex_);
  const auto found = copies_.find(device);
  if (found != copies_.end()) return found->second;
  // A copy made in inference mode could not be saved for backward by a later call.
  const c10::InferenceMode normal_mode(false);
  const Values values = {cpu_.log_decay.to(device), cpu_.frequencies.to(device)};
  copies_.emplace(device, values);
  return values;
}

}  // namespace retnet::nn
