// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/retention/log_decay_grad/launch.h"

#include <utility>

#include "kernels/cuda/retention/log_decay_grad/instances.h"

namespace retnet::kernels::cuda {
namespace {

template <DType kDtype, int... kTiles>
cudaError_t launch_tile(std::integer_sequence<int, kTiles...>, const LogDecayParams& params,
                        const LogDecayPlan& plan, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  const auto launch_if = [&]<int kTile>() {
    if (plan.tile == kTile) error = log_decay_launch<kDtype, kTile>(params, plan.slices, stream);
  };
  (launch_if.template operator()<kTiles>(), ...);
  return error;
}

}  // namespace

cudaError_t launch_log_decay(const ChunkwiseParams& forward, const ChunkwiseGradients& gradients,
                             const LogDecayPlan& plan, cudaStream_t stream) {
  if (plan.refusal != nullptr) return cudaErrorInvalidValue;
  for (const RetentionOperand* operand :
       {&forward.readout, &forward.key, &forward.value, &gradients.out}) {
    if (!chunkwise_aligned(*operand, forward)) return cudaErrorInvalidValue;
  }
  if (forward.sequences * forward.heads * plan.slices == 0) return cudaSuccess;
  constexpr auto kTiles = std::make_integer_sequence<int, kLogDecayTileCount>();
  const LogDecayParams params{forward, gradients};
  return forward.dtype == DType::kBFloat16
             ? launch_tile<DType::kBFloat16>(kTiles, params, plan, stream)
             : launch_tile<DType::kFloat16>(kTiles, params, plan, stream);
}

}  // namespace retnet::kernels::cuda
