// SPDX-License-Identifier: Apache-2.0
//
// The kernel around LogDecayBlock, and its launch.
#pragma once

#include "kernels/cuda/retention/log_decay_grad/block.cuh"

namespace retnet::kernels::cuda {

template <DType kDtype, int kTile>
__global__ void __launch_bounds__(kLogDecayTiles[kTile].threads(), 1)
    log_decay_kernel(const LogDecayParams p, bool wide) {
  if constexpr (prim::kHasAsyncMma) {
    RETNET_DYNAMIC_SHARED(shared);
    LogDecayBlock<kDtype, kTile>(p, wide, shared).run();
  }
}

template <DType kDtype, int kTile>
cudaError_t log_decay_launch(const LogDecayParams& params, int64_t slices, cudaStream_t stream) {
  constexpr LogDecayTile kShape = kLogDecayTiles[kTile];
  const ChunkwiseParams& p = params.forward;
  const auto blocks = static_cast<unsigned>(p.sequences * p.heads * slices);
  return prim::launch(log_decay_kernel<kDtype, kTile>, dim3(blocks), kShape.threads(),
                      kShape.shared_bytes(), stream, params,
                      log_decay_wide(p, params.gradients.out));
}

}  // namespace retnet::kernels::cuda
