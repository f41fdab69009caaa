// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/retention/decode_step/launch.h"

namespace retnet::kernels::cuda {
namespace {

// Calls f.operator()<dtype, whether accesses to the state are wide>() for `params`.
template <class F>
auto with_dtype_and_width(const DecodeStepParams& params, const F& f) {
  const auto with_dtype = [&]<DType kDtype>() {
    return decode_step_wide(params) ? f.template operator()<kDtype, true>()
                                    : f.template operator()<kDtype, false>();
  };
  if (params.dtype == DType::kFloat32) return with_dtype.template operator()<DType::kFloat32>();
  if (params.dtype == DType::kFloat16) return with_dtype.template operator()<DType::kFloat16>();
  return with_dtype.template operator()<DType::kBFloat16>();
}

}  // namespace

cudaError_t launch_decode_step(const DecodeStepParams& params, int cluster, cudaStream_t stream) {
  if (!supports_decode_step(params)) return cudaErrorNotSupported;
  if (params.batch == 0 || params.heads == 0) return cudaSuccess;
  return with_dtype_and_width(params, [&]<DType kDtype, bool kWide>() {
    return decode_step_launch<kDtype, kWide>(params, cluster, stream);
  });
}

int decode_step_launched_cluster(const DecodeStepParams& params, int cluster) {
  return with_dtype_and_width(params, [&]<DType kDtype, bool kWide>() {
    return decode_step_code_cluster<kDtype, kWide>(cluster);
  });
}

}  // namespace retnet::kernels::cuda
