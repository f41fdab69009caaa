// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/retention.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cmath>

#include "kernels/cuda/retention/grad_log_decay/plan.h"
#include "ops/composite/batch_invariance.h"
#include "ops/composite/retention.h"
#include "ops/cuda/device.h"
#include "ops/retention.h"
#include "ops/retention_plan.h"

namespace retnet::ops {
namespace cuda {

kernels::cuda::RetentionOperand make_operand(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

ChunkwiseLaunch plan_forward(const at::Tensor& q, const at::Tensor& v, std::optional<double> scale,
                             std::string_view form, std::optional<int64_t> chunk_size,
                             const std::optional<at::Tensor>& cu_seqlens) {
  ChunkwiseLaunch launch;
  auto& p = launch.params;
  p.batch = q.size(0);
  p.tokens = q.size(1);
  p.heads = q.size(2);
  p.head_dim_qk = q.size(3);
  p.head_dim_v = v.size(3);
  p.sequences = cu_seqlens ? cu_seqlens->size(0) - 1 : p.batch;
  p.scale = static_cast<float>(scale.value_or(1 / std::sqrt(static_cast<double>(p.head_dim_qk))));
  if (cu_seqlens) p.cu_seqlens_ptr = cu_seqlens->const_data_ptr<int32_t>();
  if (form != "chunkwise") {
    launch.plan.unsupported_reason = "the kernel supports only form=\"chunkwise\"";
  } else if (q.scalar_type() != at::kBFloat16 && q.scalar_type() != at::kHalf) {
    launch.plan.unsupported_reason = "the kernel supports only bfloat16 and float16";
  } else {
    p.dtype = q.scalar_type() == at::kHalf ? kernels::cuda::DType::kFloat16
                                           : kernels::cuda::DType::kBFloat16;
    launch.plan =
        kernels::cuda::chunkwise_plan(p, device_limits(q.device().index()), chunk_size.value_or(0),
                                      composite::batch_invariance_required());
  }
  return launch;
}

ChunkwiseLaunch plan_gradient(kernels::cuda::ChunkwisePass pass,
                              const kernels::cuda::ChunkwiseParams& forward,
                              const kernels::cuda::ChunkwiseGradients& gradients,
                              const kernels::cuda::DeviceLimits& device) {
  const auto params = kernels::cuda::chunkwise_gradient(pass, forward, gradients);
  return {params,
          kernels::cuda::chunkwise_plan(params, device, 0, composite::batch_invariance_required())};
}

const char* backward_unsupported_reason(const ChunkwiseLaunch& forward,
                                        const kernels::cuda::DeviceLimits& device,
                                        bool needs_grad_log_decay) {
  if (forward.plan.unsupported_reason != nullptr) return forward.plan.unsupported_reason;
  for (const auto pass : {kernels::cuda::ChunkwisePass::kGradQ,  // kGradK has the same shape
                          kernels::cuda::ChunkwisePass::kGradV}) {
    const auto launch = plan_gradient(pass, forward.params, {}, device);
    if (launch.plan.unsupported_reason != nullptr) return launch.plan.unsupported_reason;
  }
  if (!needs_grad_log_decay) return nullptr;
  return kernels::cuda::grad_log_decay_plan(forward.params, device).unsupported_reason;
}

bool can_read_in_place(const at::Tensor& x, const kernels::cuda::ChunkwiseParams& p) {
  return x.stride(3) == 1 && kernels::cuda::chunkwise_aligned(make_operand(x), p);
}

at::Tensor in_place_or_copy(const at::Tensor& x, const kernels::cuda::ChunkwiseParams& p) {
  return can_read_in_place(x, p) ? x : x.clone(at::MemoryFormat::Contiguous);
}

void run(ChunkwiseLaunch& launch, const at::TensorOptions& options) {
  const auto floats = static_cast<int64_t>(launch.plan.workspace_bytes / sizeof(float));
  const auto workspace = at::empty({floats}, options);
  launch.params.workspace_ptr = workspace.mutable_data_ptr<float>();
  C10_CUDA_CHECK(kernels::cuda::launch_chunkwise(launch.params, launch.plan,
                                                 c10::cuda::getCurrentCUDAStream()));
}

}  // namespace cuda

namespace {

std::tuple<at::Tensor, at::Tensor> retention_cuda(const at::Tensor& q, const at::Tensor& k,
                                                  const at::Tensor& v, const at::Tensor& log_decay,
                                                  const std::optional<at::Tensor>& initial_state,
                                                  std::optional<double> scale,
                                                  std::string_view form,
                                                  std::optional<int64_t> chunk_size,
                                                  const std::optional<at::Tensor>& cu_seqlens) {
  check_retention("retention", q, k, v, log_decay, initial_state, form, chunk_size, cu_seqlens);
  const c10::cuda::CUDAGuard guard(q.device());
  auto launch = cuda::plan_forward(q, v, scale, form, chunk_size, cu_seqlens);
  if (launch.plan.unsupported_reason != nullptr) {
    return composite::retention(q, k, v, log_decay, initial_state, scale, form, chunk_size,
                                cu_seqlens);
  }
  auto& p = launch.params;
  // These own what the parameters point to until the launch.
  const auto kept_q = cuda::in_place_or_copy(q, p), kept_k = cuda::in_place_or_copy(k, p),
             kept_v = cuda::in_place_or_copy(v, p);
  const auto kept_log_decay = log_decay.contiguous();
  const auto kept_cu_seqlens = cu_seqlens ? cu_seqlens->contiguous() : at::Tensor();
  const auto kept_initial_state = initial_state ? initial_state->contiguous() : at::Tensor();
  auto out = at::empty(v.sizes(), q.options());
  auto final_state =
      at::empty({p.sequences, p.heads, p.head_dim_qk, p.head_dim_v}, log_decay.options());
  p.q = cuda::make_operand(kept_q);
  p.k = cuda::make_operand(kept_k);
  p.v = cuda::make_operand(kept_v);
  p.log_decay_ptr = kept_log_decay.const_data_ptr<float>();
  if (cu_seqlens) p.cu_seqlens_ptr = kept_cu_seqlens.const_data_ptr<int32_t>();
  if (initial_state) p.initial_state_ptr = kept_initial_state.const_data_ptr<float>();
  p.out_ptr = out.mutable_data_ptr();
  p.final_state_ptr = final_state.mutable_data_ptr<float>();
  cuda::run(launch, log_decay.options());
  return {out, final_state};
}

RetentionPlanTuple retention_plan_cuda(const at::Tensor& q, const at::Tensor& k,
                                       const at::Tensor& v, const at::Tensor& log_decay,
                                       const std::optional<at::Tensor>& initial_state,
                                       std::optional<double> scale, std::string_view form,
                                       std::optional<int64_t> chunk_size,
                                       const std::optional<at::Tensor>& cu_seqlens) {
  check_retention("retention_plan", q, k, v, log_decay, initial_state, form, chunk_size,
                  cu_seqlens);
  const c10::cuda::CUDAGuard guard(q.device());
  const auto launch = cuda::plan_forward(q, v, scale, form, chunk_size, cu_seqlens);
  const auto& [p, plan] = launch;
  const auto device = cuda::device_limits(q.device().index());
  const char* reason = cuda::backward_unsupported_reason(launch, device, log_decay.requires_grad());
  const std::string backward_reason = reason != nullptr ? reason : "";
  if (plan.unsupported_reason != nullptr) {
    return {"composite", plan.unsupported_reason, 0, 0, 0, 0, 0, 0, backward_reason};
  }
  const auto& tile = kernels::cuda::kChunkwiseTiles[plan.tile];
  const int64_t copies = !cuda::can_read_in_place(q, p) + !cuda::can_read_in_place(k, p) +
                         !cuda::can_read_in_place(v, p);
  return {"kernel",      "",     tile.head_dim_qk, tile.slice, tile.chunk, plan.segment_length,
          plan.segments, copies, backward_reason};
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CUDA, m) {
  m.impl("retention", retention_cuda);
  m.impl("retention_plan", retention_plan_cuda);
}

}  // namespace retnet::ops
