// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/retention/grad_log_decay/launch.h"

#include <utility>

namespace retnet::kernels::cuda {
namespace {

template <DType kDtype, int... kTiles>
cudaError_t launch_tile(std::integer_sequence<int, kTiles...>, const GradLogDecayParams& params,
                        const GradLogDecayPlan& plan, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  const auto launch_if = [&]<int kTile>() {
    if (plan.tile == kTile)
      error = grad_log_decay_launch<kDtype, kTile>(params, plan.slices, stream);
  };
  (launch_if.template operator()<kTiles>(), ...);
  return error;
}

}  // namespace

cudaError_t launch_grad_log_decay(const GradLogDecayParams& params, const GradLogDecayPlan& plan,
                                  cudaStream_t stream) {
  if (plan.unsupported_reason != nullptr) return cudaErrorInvalidValue;
  const ChunkwiseParams& forward = params.forward;
  for (const RetentionOperand* operand :
       {&forward.q, &forward.k, &forward.v, &params.gradients.grad_out}) {
    if (!chunkwise_aligned(*operand, forward)) return cudaErrorInvalidValue;
  }
  if (forward.sequences * forward.heads * plan.slices == 0) return cudaSuccess;
  constexpr auto kTiles = std::make_integer_sequence<int, kGradLogDecayTileCount>();
  return forward.dtype == DType::kBFloat16
             ? launch_tile<DType::kBFloat16>(kTiles, params, plan, stream)
             : launch_tile<DType::kFloat16>(kTiles, params, plan, stream);
}

}  // namespace retnet::kernels::cuda
