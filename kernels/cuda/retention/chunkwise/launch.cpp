// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/retention/chunkwise/launch.h"

#include <utility>

namespace retnet::kernels::cuda {
namespace {

template <DType kDtype, int... kTiles>
cudaError_t launch_tile(std::integer_sequence<int, kTiles...>, int tile,
                        const ChunkwiseParams& params, ChunkwisePhase phase, int64_t segment_length,
                        int64_t segments, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  const auto launch_if = [&]<int kTile>() {
    if (tile != kTile) return;
    error = chunkwise_launch<kDtype, kTile>(params, phase, segment_length, segments, stream);
  };
  (launch_if.template operator()<kTiles>(), ...);
  return error;
}

cudaError_t launch(const ChunkwiseParams& params, ChunkwisePhase phase, const ChunkwisePlan& plan,
                   cudaStream_t stream) {
  const auto with_dtype = [&]<DType kDtype>() {
    return launch_tile<kDtype>(std::make_integer_sequence<int, kChunkwiseTileCount>(), plan.tile,
                               params, phase, plan.segment_length, plan.segments, stream);
  };
  return params.dtype == DType::kBFloat16 ? with_dtype.template operator()<DType::kBFloat16>()
                                          : with_dtype.template operator()<DType::kFloat16>();
}

}  // namespace

cudaError_t launch_chunkwise(const ChunkwiseParams& params, const ChunkwisePlan& plan,
                             cudaStream_t stream) {
  if (plan.unsupported_reason != nullptr) return cudaErrorInvalidValue;
  for (const RetentionOperand* operand : {&params.q, &params.k, &params.v}) {
    if (!chunkwise_aligned(*operand, params)) return cudaErrorInvalidValue;
  }
  if (plan.segments == 0 || params.heads == 0) return cudaSuccess;
  if (plan.segment_length == 0) return launch(params, ChunkwisePhase::kWhole, plan, stream);

  if (params.workspace_ptr == nullptr) return cudaErrorInvalidValue;
  cudaError_t error = launch(params, ChunkwisePhase::kLocal, plan, stream);
  if (error != cudaSuccess) return error;
  error = launch_segment_scan(params, plan.segment_length, stream);
  if (error != cudaSuccess) return error;
  return launch(params, ChunkwisePhase::kFused, plan, stream);
}

}  // namespace retnet::kernels::cuda
