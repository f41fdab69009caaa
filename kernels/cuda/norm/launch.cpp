// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/norm/launch.h"

namespace retnet::kernels::cuda {
namespace {

// Calls f.operator()<dtype, elements per access>() for `params`.
template <class Params, class F>
cudaError_t with_dtype_and_vector(const Params& params, const F& f) {
  const int vector = gated_group_norm_vector(params);
  switch (params.dtype) {
    case DType::kFloat32:
      if (vector == 4) return f.template operator()<DType::kFloat32, 4>();
      break;
    case DType::kFloat16:
      if (vector == 4) return f.template operator()<DType::kFloat16, 4>();
      if (vector == 8) return f.template operator()<DType::kFloat16, 8>();
      break;
    case DType::kBFloat16:
      if (vector == 4) return f.template operator()<DType::kBFloat16, 4>();
      if (vector == 8) return f.template operator()<DType::kBFloat16, 8>();
      break;
  }
  return cudaErrorNotSupported;
}

// Sums the rows [H, Dv] of `partial`, one of each block, into `out`. Without per_head it also sums the
// heads.
cudaError_t sum_partials(const GatedGroupNormBackwardParams& params, const float* partial,
                         float* out, bool per_head, cudaStream_t stream) {
  const int64_t rows = gated_group_norm_blocks_per_head(params);
  ColumnSumParams sum;
  sum.in_ptr = partial;
  sum.out_ptr = out;
  sum.rows = per_head ? rows : rows * params.heads;
  sum.columns = per_head ? params.heads * params.head_dim_v : params.head_dim_v;
  return launch_column_sum(sum, stream);
}

}  // namespace

cudaError_t launch_gated_group_norm(const GatedGroupNormParams& params, cudaStream_t stream) {
  if (!supports_gated_group_norm(params)) return cudaErrorNotSupported;
  if (params.tokens == 0 || params.heads == 0) return cudaSuccess;
  return with_dtype_and_vector(params, [&]<DType kDtype, int kVector>() {
    return gated_group_norm_forward_launch<kDtype, kVector>(params, stream);
  });
}

cudaError_t launch_gated_group_norm_backward(const GatedGroupNormBackwardParams& params,
                                             cudaStream_t stream) {
  if (!supports_gated_group_norm(params)) return cudaErrorNotSupported;
  const bool wants_rows = params.grad_x_ptr != nullptr || params.grad_gate_ptr != nullptr;
  const bool wants_sums = params.grad_weight_ptr != nullptr || params.grad_bias_ptr != nullptr;
  if (!wants_rows && !wants_sums) return cudaSuccess;

  if (params.tokens > 0 && params.heads > 0) {
    if (wants_sums && params.workspace_ptr == nullptr) return cudaErrorInvalidValue;
    const cudaError_t error = with_dtype_and_vector(params, [&]<DType kDtype, int kVector>() {
      return gated_group_norm_backward_launch<kDtype, kVector>(params, stream);
    });
    if (error != cudaSuccess) return error;
  }

  // An empty shape has no partial rows, so its sums are zeros.
  const float* partial = static_cast<const float*>(params.workspace_ptr);
  if (params.grad_weight_ptr != nullptr) {
    const cudaError_t error =
        sum_partials(params, partial, params.grad_weight_ptr, params.grad_weight_per_head, stream);
    if (error != cudaSuccess) return error;
    partial += gated_group_norm_blocks_per_head(params) * params.heads * params.head_dim_v;
  }
  if (params.grad_bias_ptr != nullptr) {
    return sum_partials(params, partial, params.grad_bias_ptr, params.grad_bias_per_head, stream);
  }
  return cudaSuccess;
}

}  // namespace retnet::kernels::cuda
