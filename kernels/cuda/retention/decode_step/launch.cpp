// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/retention/decode_step/launch.h"

namespace retnet::kernels::cuda {

cudaError_t launch_decode_step(const DecodeStepParams& params, int cluster, cudaStream_t stream) {
  if (!supports_decode_step(params)) return cudaErrorNotSupported;
  if (params.batch == 0 || params.heads == 0) return cudaSuccess;
  const auto with_dtype = [&]<DType kDtype>() {
    return decode_step_wide(params) ? decode_step_launch<kDtype, true>(params, cluster, stream)
                                    : decode_step_launch<kDtype, false>(params, cluster, stream);
  };
  switch (params.dtype) {
    case DType::kFloat32:
      return with_dtype.template operator()<DType::kFloat32>();
    case DType::kFloat16:
      return with_dtype.template operator()<DType::kFloat16>();
    case DType::kBFloat16:
      return with_dtype.template operator()<DType::kBFloat16>();
  }
  return cudaErrorNotSupported;
}

}  // namespace retnet::kernels::cuda
