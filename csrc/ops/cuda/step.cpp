// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/step.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <cmath>

#include "ops/cuda/dtype.h"
#include "ops/cuda/retention.h"

namespace retnet::ops::cuda {

at::Tensor StepCall::readable(const at::Tensor& t) {
  return owners.emplace_back(t.size(-1) == 1 || t.stride(-1) == 1 ? t : t.contiguous());
}

std::optional<StepCall> step_call(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const at::Tensor& log_decay, const at::Tensor& state,
                                  std::optional<double> scale,
                                  const std::optional<at::Tensor>& slots) {
  const auto dtype = kernel_dtype(q);
  if (!dtype || (state.size(3) != 1 && state.stride(3) != 1)) return std::nullopt;
  StepCall call;
  auto& p = call.params;
  p.batch = q.size(0);
  p.heads = q.size(1);
  p.states = state.size(0);
  p.key_dim = q.size(2);
  p.value_dim = v.size(2);
  p.dtype = *dtype;
  if (!kernels::cuda::retention_step_supported(p)) return std::nullopt;
  p.scale = static_cast<float>(scale.value_or(1 / std::sqrt(static_cast<double>(p.key_dim))));
  const auto tokens = [&](const at::Tensor& x, const void*& ptr, int64_t& stride_b,
                          int64_t& stride_h) {
    const auto row = call.readable(x);
    ptr = row.const_data_ptr();
    stride_b = row.stride(0);
    stride_h = row.stride(1);
  };
  tokens(q, p.q_ptr, p.q_stride_b, p.q_stride_h);
  tokens(k, p.k_ptr, p.k_stride_b, p.k_stride_h);
  tokens(v, p.v_ptr, p.v_stride_b, p.v_stride_h);
  p.log_decay_ptr = call.readable(log_decay).const_data_ptr<float>();
  if (slots) p.slots_ptr = call.readable(*slots).const_data_ptr<int32_t>();
  p.state_ptr = state.mutable_data_ptr<float>();
  p.state_stride_s = state.stride(0);
  p.state_stride_h = state.stride(1);
  p.state_stride_k = state.stride(2);
  return call;
}

at::Tensor launch(StepCall& call, const at::Tensor& v) {
  auto out = at::empty(v.sizes(), v.options());
  if (out.numel() == 0) return out;
  call.params.out_ptr = out.mutable_data_ptr();
  const int cluster =
      kernels::cuda::retention_step_cluster(call.params, device_limits(v.device().index()));
  C10_CUDA_CHECK(kernels::cuda::launch_retention_step(call.params, cluster,
                                                      c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace retnet::ops::cuda
