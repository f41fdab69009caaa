// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/retention/log_decay_grad/plan.h"

namespace retnet::kernels::cuda {

LogDecayPlan log_decay_plan(const ChunkwiseParams& forward, const DeviceLimits& device) {
  // What the forward kernel refuses, this one does.
  LogDecayPlan plan{chunkwise_plan(forward, device, 0, false).refusal};
  if (plan.refusal != nullptr) return plan;
  for (int i = 0; i < kLogDecayTileCount && plan.tile < 0; ++i) {
    const LogDecayTile& tile = kLogDecayTiles[i];
    if (tile.inner < forward.inner || tile.shared_bytes() > device.shared_bytes) continue;
    plan.tile = i;
    plan.slices = (forward.outer + tile.slice - 1) / tile.slice;
  }
  if (plan.tile < 0) {
    plan.refusal = "the device has too little shared memory for every tile of log_decay's gradient";
  } else if (forward.sequences * forward.heads * plan.slices > INT32_MAX) {
    plan.refusal = "more than 2^31 - 1 blocks for log_decay's gradient";
  }
  return plan;
}

bool log_decay_wide(const ChunkwiseParams& forward, const RetentionOperand& grad_out) {
  ChunkwiseParams with_grad = forward;
  with_grad.readout = grad_out;
  return chunkwise_wide(forward) && chunkwise_wide(with_grad);
}

}  // namespace retnet::kernels::cuda
