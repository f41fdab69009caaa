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

/// A call of the kernel: its parameters but for the pointers to device memory, and its plan.
struct Call {
  kernels::ChunkwiseParams params;
  kernels::ChunkwisePlan plan;
};

/// Plans a checked call; copies nothing.
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
    p.dtype = q.scalar_type() == at::kHalf ? kernels::DType::kFloat16 : kernels::DType::kBFloat16;
    call.plan = kernels::chunkwise_plan(p, device_limits(q.device().index()),
                                        chunk_size.value_or(0), composite::rows_apart());
  }
  return call;
}

/// Whether the kernel reads x [B, T, H, D] where it lies; else it reads a contiguous copy.
bool readable(const at::Tensor& x, const kernels::ChunkwiseParams& p) {
  return x.stride(3) == 1 && kernels::chunkwise_aligned(operand_of(x), p);
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
  auto [p, plan] = plan_call(q, v, scale, form, chunk_size, cu_seqlens);
  if (plan.refusal != nullptr) {
    return composite::retention(q, k, v, log_decay, initial_state, scale, form, chunk_size,
                                cu_seqlens);
  }
  // These own what the parameters point to until the launch.
  const auto readable_or_copy = [&p = p](const at::Tensor& x) {
    return readable(x, p) ? x : x.clone(at::MemoryFormat::Contiguous);
  };
  const auto readout = readable_or_copy(q), key = readable_or_copy(k), value = readable_or_copy(v);
  const auto decay = log_decay.contiguous();
  const auto bounds = cu_seqlens ? cu_seqlens->contiguous() : at::Tensor();
  const auto start = initial_state ? initial_state->contiguous() : at::Tensor();
  auto out = at::empty(v.sizes(), q.options());
  auto final_state = at::empty({p.sequences, p.heads, p.inner, p.outer}, log_decay.options());
  const auto workspace =
      at::empty({static_cast<int64_t>(plan.workspace_bytes / sizeof(float))}, log_decay.options());
  p.readout = operand_of(readout);
  p.key = operand_of(key);
  p.value = operand_of(value);
  p.log_decay_ptr = decay.const_data_ptr<float>();
  if (cu_seqlens) p.cu_seqlens_ptr = bounds.const_data_ptr<int32_t>();
  if (initial_state) p.initial_state_ptr = start.const_data_ptr<float>();
  p.out_ptr = out.mutable_data_ptr();
  p.final_state_ptr = final_state.mutable_data_ptr<float>();
  p.workspace_ptr = workspace.mutable_data_ptr<float>();
  C10_CUDA_CHECK(kernels::launch_chunkwise(p, plan, c10::cuda::getCurrentCUDAStream()));
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
  const auto [p, plan] = plan_call(q, v, scale, form, chunk_size, cu_seqlens);
  if (plan.refusal != nullptr) return {"composite", plan.refusal, 0, 0, 0, 0, 0, 0};
  const auto& tile = kernels::kChunkwiseTiles[plan.tile];
  const int64_t copies = !readable(q, p) + !readable(k, p) + !readable(v, p);
  return {"kernel", "", tile.inner, tile.slice, tile.chunk, plan.segment_length, plan.rows, copies};
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CUDA, m) {
  m.impl("retention", retention_cuda);
  m.impl("retention_plan", retention_plan_cuda);
}

}  // namespace retnet::ops
