// SPDX-License-Identifier: Apache-2.0
#include "ops/retention.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cmath>

#include "kernels/retention/chunkwise.h"
#include "ops/composite/deterministic.h"
#include "ops/composite/retention.h"
#include "ops/retention_plan.h"

namespace retnet::ops {
namespace {

kernels::DeviceLimits device_limits(c10::DeviceIndex device) {
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

kernels::RetentionOperand operand_of(const at::Tensor& x) {
  return {x.const_data_ptr(), x.stride(0), x.stride(1), x.stride(2)};
}

/// A call of the kernel. The tensors own what the parameters point to.
struct Call {
  kernels::ChunkwiseParams params;
  kernels::ChunkwisePlan plan;
  at::Tensor q, k, v, log_decay, initial_state, cu_seqlens;
  int64_t copies = 0;
};

/// Plans a checked call. Of what the kernel refuses nothing is copied.
Call make_call(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
               const at::Tensor& log_decay, const std::optional<at::Tensor>& initial_state,
               std::optional<double> scale, std::string_view form,
               std::optional<int64_t> chunk_size, const std::optional<at::Tensor>& cu_seqlens) {
  Call call;
  auto& p = call.params;
  p.batch = q.size(0);
  p.tokens = q.size(1);
  p.heads = q.size(2);
  p.inner = q.size(3);
  p.outer = v.size(3);
  p.sequences = cu_seqlens ? cu_seqlens->size(0) - 1 : p.batch;
  p.scale = static_cast<float>(scale.value_or(1 / std::sqrt(static_cast<double>(p.inner))));
  if (cu_seqlens) {
    call.cu_seqlens = cu_seqlens->contiguous();
    p.cu_seqlens_ptr = call.cu_seqlens.const_data_ptr<int32_t>();
  }
  if (form != "chunkwise") {
    call.plan.refusal = "the kernel is of the chunkwise form";
  } else if (q.scalar_type() != at::kBFloat16 && q.scalar_type() != at::kHalf) {
    call.plan.refusal = "the kernel takes bfloat16 and float16";
  } else {
    p.dtype = q.scalar_type() == at::kHalf ? kernels::DType::kFloat16 : kernels::DType::kBFloat16;
    call.plan = kernels::chunkwise_plan(p, device_limits(q.device().index()),
                                        chunk_size.value_or(0), composite::rows_apart());
  }
  if (call.plan.refusal != nullptr) return call;

  const auto usable = [&](const at::Tensor& x) {
    if (x.stride(3) == 1 && kernels::chunkwise_aligned(operand_of(x), p)) return x;
    ++call.copies;
    return x.clone(at::MemoryFormat::Contiguous);
  };
  call.q = usable(q);
  call.k = usable(k);
  call.v = usable(v);
  p.readout = operand_of(call.q);
  p.key = operand_of(call.k);
  p.value = operand_of(call.v);
  call.log_decay = log_decay.contiguous();
  p.log_decay_ptr = call.log_decay.const_data_ptr<float>();
  if (initial_state) {
    call.initial_state = initial_state->contiguous();
    p.initial_state_ptr = call.initial_state.const_data_ptr<float>();
  }
  return call;
}

std::tuple<at::Tensor, at::Tensor> retention_cuda(const at::Tensor& q, const at::Tensor& k,
                                                  const at::Tensor& v, const at::Tensor& log_decay,
                                                  const std::optional<at::Tensor>& initial_state,
                                                  std::optional<double> scale,
                                                  std::string_view form,
                                                  std::optional<int64_t> chunk_size,
                                                  const std::optional<at::Tensor>& cu_seqlens) {
  check_retention("retention", q, k, v, log_decay, initial_state, form, chunk_size, cu_seqlens);
  const c10::cuda::CUDAGuard guard(q.device());
  auto call = make_call(q, k, v, log_decay, initial_state, scale, form, chunk_size, cu_seqlens);
  if (call.plan.refusal != nullptr) {
    return composite::retention(q, k, v, log_decay, initial_state, scale, form, chunk_size,
                                cu_seqlens);
  }
  auto& p = call.params;
  auto out = at::empty(v.sizes(), q.options());
  auto final_state = at::empty({p.sequences, p.heads, p.inner, p.outer}, log_decay.options());
  const auto workspace = at::empty(
      {static_cast<int64_t>(call.plan.workspace_bytes / sizeof(float))}, log_decay.options());
  p.out_ptr = out.mutable_data_ptr();
  p.final_state_ptr = final_state.mutable_data_ptr<float>();
  p.workspace_ptr = workspace.mutable_data_ptr<float>();
  C10_CUDA_CHECK(kernels::launch_chunkwise(p, call.plan, c10::cuda::getCurrentCUDAStream()));
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
  const auto call =
      make_call(q, k, v, log_decay, initial_state, scale, form, chunk_size, cu_seqlens);
  if (call.plan.refusal != nullptr) return {"composite", call.plan.refusal, 0, 0, 0, 0, 0, 0};
  const auto& tile = kernels::kChunkwiseTiles[call.plan.tile];
  return {"kernel",       "",         tile.inner, tile.slice, tile.chunk, call.plan.segment_length,
          call.plan.rows, call.copies};
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CUDA, m) {
  m.impl("retention", retention_cuda);
  m.impl("retention_plan", retention_plan_cuda);
}

}  // namespace retnet::ops
