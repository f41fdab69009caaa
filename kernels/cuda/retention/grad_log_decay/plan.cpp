// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/retention/grad_log_decay/plan.h"

namespace retnet::kernels::cuda {

GradLogDecayPlan grad_log_decay_plan(const ChunkwiseParams& forward, const DeviceLimits& device) {
  // This kernel supports only what the forward kernel supports.
  GradLogDecayPlan plan{
      chunkwise_plan(forward, device, 0, /*batch_invariance_required=*/false).unsupported_reason};
  if (plan.unsupported_reason != nullptr) return plan;
  for (int i = 0; i < kGradLogDecayTileCount && plan.tile < 0; ++i) {
    const GradLogDecayTile& tile = kGradLogDecayTiles[i];
    if (tile.head_dim_qk < forward.head_dim_qk || tile.shared_bytes() > device.shared_bytes)
      continue;
    plan.tile = i;
    plan.slices = (forward.head_dim_v + tile.slice - 1) / tile.slice;
  }
  if (plan.tile < 0) {
    plan.unsupported_reason =
        "the device has too little shared memory for every tile of log_decay's gradient";
  } else if (forward.sequences * forward.heads * plan.slices > INT32_MAX) {
    plan.unsupported_reason = "the gradient of log_decay would need more than 2^31 - 1 blocks";
  }
  return plan;
}

bool grad_log_decay_wide(const ChunkwiseParams& forward, const RetentionOperand& grad_out) {
  ChunkwiseParams with_grad = forward;
  with_grad.q = grad_out;
  return chunkwise_wide(forward) && chunkwise_wide(with_grad);
}

}  // namespace retnet::kernels::cuda
