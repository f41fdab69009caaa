// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/rotary/launch.h"

namespace retnet::kernels::cuda {

cudaError_t launch_rotary(const RotaryParams& params, cudaStream_t stream) {
  if (!supports_rotary(params)) return cudaErrorNotSupported;
  const bool absent = params.q.in_ptr == nullptr && params.k.in_ptr == nullptr;
  if (absent || params.batch == 0 || params.tokens == 0 || params.heads == 0) return cudaSuccess;
  const bool wide = rotary_vector(params) == 8;
  switch (params.dtype) {
    case DType::kFloat32:
      return rotary_launch<DType::kFloat32, 4>(params, stream);
    case DType::kFloat16:
      return wide ? rotary_launch<DType::kFloat16, 8>(params, stream)
                  : rotary_launch<DType::kFloat16, 4>(params, stream);
    case DType::kBFloat16:
      return wide ? rotary_launch<DType::kBFloat16, 8>(params, stream)
                  : rotary_launch<DType::kBFloat16, 4>(params, stream);
  }
  return cudaErrorNotSupported;
}

}  // namespace retnet::kernels::cuda
