// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/decode_step.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>

#include <cmath>

#include "kernels/cuda/retention/decode_step/cost_model.h"
#include "ops/cuda/device.h"
#include "ops/cuda/dtype.h"

namespace retnet::ops::cuda {

at::Tensor DecodeStepLaunch::keep_contiguous(const at::Tensor& t) {
  return owners.emplace_back(t.size(-1) == 1 || t.stride(-1) == 1 ? t : t.contiguous());
}

std::optional<DecodeStepLaunch> prepare_decode_step(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const at::Tensor& state, std::optional<double> scale, const std::optional<at::Tensor>& slots) {
  const auto dtype = kernel_dtype(q);
  if (!dtype || (state.size(3) != 1 && state.stride(3) != 1)) return std::nullopt;
  DecodeStepLaunch launch;
  auto& p = launch.params;
  p.batch = q.size(0);
  p.heads = q.size(1);
  p.states = state.size(0);
  p.head_dim_qk = q.size(2);
  p.head_dim_v = v.size(2);
  p.dtype = *dtype;
  if (!kernels::cuda::supports_decode_step(p)) return std::nullopt;
  p.scale = static_cast<float>(scale.value_or(1 / std::sqrt(static_cast<double>(p.head_dim_qk))));
  const auto set = [&](const at::Tensor& x, const void*& ptr, int64_t& stride_b,
                       int64_t& stride_h) {
    const auto kept = launch.keep_contiguous(x);
    ptr = kept.const_data_ptr();
    stride_b = kept.stride(0);
    stride_h = kept.stride(1);
  };
  set(q, p.q_ptr, p.q_stride_b, p.q_stride_h);
  set(k, p.k_ptr, p.k_stride_b, p.k_stride_h);
  set(v, p.v_ptr, p.v_stride_b, p.v_stride_h);
  p.log_decay_ptr = launch.keep_contiguous(log_decay).const_data_ptr<float>();
  if (slots) p.slots_ptr = launch.keep_contiguous(*slots).const_data_ptr<int32_t>();
  p.state_ptr = state.mutable_data_ptr<float>();
  p.state_stride_s = state.stride(0);
  p.state_stride_h = state.stride(1);
  p.state_stride_k = state.stride(2);
  return launch;
}

at::Tensor run(DecodeStepLaunch& launch, const at::Tensor& v) {
  auto out = at::empty(v.sizes(), v.options());
  if (out.numel() == 0) return out;
  launch.params.out_ptr = out.mutable_data_ptr();
  const int cluster =
      kernels::cuda::decode_step_cluster(launch.params, device_limits(v.device().index()));
  C10_CUDA_CHECK(
      kernels::cuda::launch_decode_step(launch.params, cluster, c10::cuda::getCurrentCUDAStream()));
  return out;
}

}  // namespace retnet::ops::cuda
