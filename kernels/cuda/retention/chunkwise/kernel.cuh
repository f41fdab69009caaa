// SPDX-License-Identifier: Apache-2.0
//
// The kernel around ChunkwiseBlock, and its launch.
#pragma once

#include "kernels/cuda/retention/chunkwise/block.cuh"

namespace retnet::kernels::cuda {

template <DType kDtype, int kTile>
__global__ void __launch_bounds__(kChunkwiseTiles[kTile].threads(), 1)
    chunkwise_kernel(const ChunkwiseParams p, ChunkwisePhase phase, int segment_length, bool wide) {
  if constexpr (prim::kHasAsyncMma) {
    RETNET_DYNAMIC_SHARED(shared);
    ChunkwiseBlock<kDtype, kTile>(p, phase, segment_length, wide, shared).run();
  }
}

template <DType kDtype, int kTile>
cudaError_t chunkwise_launch(const ChunkwiseParams& params, ChunkwisePhase phase,
                             int64_t segment_length, int64_t rows, cudaStream_t stream) {
  constexpr ChunkwiseTile kShape = kChunkwiseTiles[kTile];
  const int64_t slices = (params.outer + kShape.slice - 1) / kShape.slice;
  const auto blocks = static_cast<unsigned>(rows * params.heads * slices);
  return prim::launch(chunkwise_kernel<kDtype, kTile>, dim3(blocks), kShape.threads(),
                      kShape.shared_bytes(), stream, params, phase,
                      static_cast<int>(segment_length), chunkwise_wide(params));
}

}  // namespace retnet::kernels::cuda
