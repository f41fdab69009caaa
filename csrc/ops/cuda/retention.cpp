// SPDX-License-Identifier: Apache-2.0
#include "ops/cuda/retention.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cmath>

#include "kernels/cuda/retention/log_decay_grad/plan.h"
#include "ops/composite/deterministic.h"
#include "ops/composite/retention.h"
#include "ops/retention.h"
#include "ops/retention_plan.h"

namespace retnet::ops {
namespace cuda {

kernels::cuda::DeviceLimits device_limits(c10::DeviceIndex device) {
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, device));
    return value;
  };
  return {10 * attribute(cudaDevAttrComputeCapabilityMajor) +
              attribute(cudaDevAttrComputeCapabilityMinor),
          attribute(cudaDevAttrMultiProcessorCount),
          static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin))};
}

kernels::cuda::RetentionOperand operand_of(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

Call plan_call(const at::Tensor& q, const at::Tensor& v, std::optional<double> scale,
               std::string_view form, std::optional<int64_t> chunk_size,
               const std::optional<at::Tensor>& cu_seqlens) {
  Call call;
  auto& p = call.params;
  p.batch = q.size(0);
  p.tokens = q.size(1);
  p.heads = q.size(2);
  p.inner = q.size(3);
  p.outer = v.size(3);
  p.sequences = cu_seqlens ? cu_seqlens->size(0) - 1 : p.batch;
  p.scale = static_cast<float>(scale.value_or(1 / std::sqrt(static_cast<double>(p.inner))));
  if (cu_seqlens) p.cu_seqlens_ptr = cu_seqlens->const_data_ptr<int32_t>();
  if (form != "chunkwise") {
    call.plan.refusal = "the kernel is of the chunkwise form";
  } else if (q.scalar_type() != at::kBFloat16 && q.scalar_type() != at::kHalf) {
    call.plan.refusal = "the kernel takes bfloat16 and float16";
  } else {
    p.dtype = q.scalar_type() == at::kHalf ? kernels::cuda::DType::kFloat16
                                           : kernels::cuda::DType::kBFloat16;
    call.plan =
        kernels::cuda::chunkwise_plan(p, device_limits(q.device().index()), chunk_size.value_or(0),
                                      composite::batch_invariance_required());
  }
  return call;
}

Call plan_gradient(kernels::cuda::ChunkwisePass pass, const kernels::cuda::ChunkwiseParams& forward,
                   const kernels::cuda::ChunkwiseGradients& gradients,
                   const kernels::cuda::DeviceLimits& device) {
  const auto params = kernels::cuda::chunkwise_gradient(pass, forward, gradients);
  return {params,
          kernels::cuda::chunkwise_plan(params, device, 0, composite::batch_invariance_required())};
}

const char* backward_refusal(const Call& forward, const kernels::cuda::DeviceLimits& device,
                             bool ask_log_decay) {
  if (forward.plan.refusal != nullptr) return forward.plan.refusal;
  for (const auto pass :
       {kernels::cuda::ChunkwisePass::kQ, kernels::cuda::ChunkwisePass::kV}) {  // kK: as kQ
    const auto call = plan_gradient(pass, forward.params, {}, device);
    if (call.plan.refusal != nullptr) return call.plan.refusal;
  }
  return ask_log_decay ? kernels::cuda::log_decay_plan(forward.params, device).refusal : nullptr;
}

bool readable(const at::Tensor& x, const kernels::cuda::ChunkwiseParams& p) {
  return x.stride(3) == 1 && kernels::cuda::chunkwise_aligned(operand_of(x), p);
}

at::Tensor readable_or_copy(const at::Tensor& x, const kernels::cuda::ChunkwiseParams& p) {
  return readable(x, p) ? x : x.clone(at::MemoryFormat::Contiguous);
}

void launch(Call& call, const at::TensorOptions& options) {
  const auto floats = static_cast<int64_t>(call.plan.workspace_bytes / sizeof(float));
  const auto workspace = at::empty({floats}, options);
  call.params.workspace_ptr = workspace.mutable_data_ptr<float>();
  C10_CUDA_CHECK(
      kernels::cuda::launch_chunkwise(call.params, call.plan, c10::cuda::getCurrentCUDAStream()));
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
  auto call = cuda::plan_call(q, v, scale, form, chunk_size, cu_seqlens);
  if (call.plan.refusal != nullptr) {
    return composite::retention(q, k, v, log_decay, initial_state, scale, form, chunk_size,
                                cu_seqlens);
  }
  auto& p = call.params;
  // These own what the parameters point to until the launch.
  const auto readout = cuda::readable_or_copy(q, p), key = cuda::readable_or_copy(k, p),
             value = cuda::readable_or_copy(v, p);
  const auto decay = log_decay.contiguous();
  const auto bounds = cu_seqlens ? cu_seqlens->contiguous() : at::Tensor();
  const auto start = initial_state ? initial_state->contiguous() : at::Tensor();
  auto out = at::empty(v.sizes(), q.options());
  auto final_state = at::empty({p.sequences, p.heads, p.inner, p.outer}, log_decay.options());
  p.readout = cuda::operand_of(readout);
  p.key = cuda::operand_of(key);
  p.value = cuda::operand_of(value);
  p.log_decay_ptr = decay.const_data_ptr<float>();
  if (cu_seqlens) p.cu_seqlens_ptr = bounds.const_data_ptr<int32_t>();
  if (initial_state) p.initial_state_ptr = start.const_data_ptr<float>();
  p.out_ptr = out.mutable_data_ptr();
  p.final_state_ptr = final_state.mutable_data_ptr<float>();
  cuda::launch(call, log_decay.options());
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
  const auto call = cuda::plan_call(q, v, scale, form, chunk_size, cu_seqlens);
  const auto& [p, plan] = call;
  const auto device = cuda::device_limits(q.device().index());
  const char* refusal = cuda::backward_refusal(call, device, log_decay.requires_grad());
  const std::string backward = refusal != nullptr ? refusal : "";
  if (plan.refusal != nullptr) return {"composite", plan.refusal, 0, 0, 0, 0, 0, 0, backward};
  const auto& tile = kernels::cuda::kChunkwiseTiles[plan.tile];
  const int64_t copies = !cuda::readable(q, p) + !cuda::readable(k, p) + !cuda::readable(v, p);
  return {"kernel",  "",     tile.inner, tile.slice, tile.chunk, plan.segment_length,
          plan.rows, copies, backward};
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CUDA, m) {
  m.impl("retention", retention_cuda);
  m.impl("retention_plan", retention_plan_cuda);
}

}  // namespace retnet::ops
