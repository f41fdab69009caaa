// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "kernels/cuda/retention/grad_log_decay/launch.h"
#include "ops/composite/retention.h"
#include "ops/cuda/device.h"
#include "ops/cuda/retention.h"
#include "ops/retention.h"

namespace retnet::ops {
namespace {

using kernels::cuda::ChunkwisePass;

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> retention_backward_cuda(
    const std::optional<at::Tensor>& grad_out, const std::optional<at::Tensor>& grad_final_state,
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state, std::optional<double> scale,
    std::string_view form, std::optional<int64_t> chunk_size,
    const std::optional<at::Tensor>& cu_seqlens, std::array<bool, 5> output_mask) {
  check_retention("retention_backward", q, k, v, log_decay, initial_state, form, chunk_size,
                  cu_seqlens);
  check_retention_grads(grad_out, grad_final_state, q, k, v, log_decay, cu_seqlens);
  const c10::cuda::CUDAGuard guard(q.device());
  const auto device = cuda::device_limits(q.device().index());
  auto forward = cuda::plan_forward(q, v, scale, form, chunk_size, cu_seqlens);
  const auto [needs_q, needs_k, needs_v, needs_log_decay, needs_initial_state] = output_mask;
  if (cuda::backward_unsupported_reason(forward, device, needs_log_decay) != nullptr) {
    return composite::retention_backward(grad_out, grad_final_state, q, k, v, log_decay,
                                         initial_state, scale, form, chunk_size, cu_seqlens,
                                         output_mask);
  }
  auto& p = forward.params;
  // These own what the parameters point to until the launches.
  const auto kept_q = cuda::in_place_or_copy(q, p), kept_k = cuda::in_place_or_copy(k, p),
             kept_v = cuda::in_place_or_copy(v, p);
  const auto kept_grad_out = grad_out ? cuda::in_place_or_copy(*grad_out, p) : at::Tensor();
  const auto kept_log_decay = log_decay.contiguous();
  const auto kept_cu_seqlens = cu_seqlens ? cu_seqlens->contiguous() : at::Tensor();
  const auto kept_initial_state = initial_state ? initial_state->contiguous() : at::Tensor();
  const auto kept_grad_final_state =
      grad_final_state ? grad_final_state->contiguous() : at::Tensor();
  p.q = cuda::make_operand(kept_q);
  p.k = cuda::make_operand(kept_k);
  p.v = cuda::make_operand(kept_v);
  p.log_decay_ptr = kept_log_decay.const_data_ptr<float>();
  if (cu_seqlens) p.cu_seqlens_ptr = kept_cu_seqlens.const_data_ptr<int32_t>();
  if (initial_state) p.initial_state_ptr = kept_initial_state.const_data_ptr<float>();
  kernels::cuda::ChunkwiseGradients gradients;
  if (grad_out) gradients.grad_out = cuda::make_operand(kept_grad_out);
  if (grad_final_state)
    gradients.grad_final_state_ptr = kept_grad_final_state.const_data_ptr<float>();

  at::Tensor grad_q, grad_k, grad_v, grad_log_decay, grad_initial_state;
  if (initial_state && needs_initial_state) {
    grad_initial_state = at::empty(initial_state->sizes(), initial_state->options());
    gradients.grad_initial_state_ptr = grad_initial_state.mutable_data_ptr<float>();
  }
  if (needs_log_decay) {
    const auto plan = kernels::cuda::grad_log_decay_plan(p, device);
    const auto parts =
        at::empty({p.sequences, p.heads, plan.slices}, log_decay.options().dtype(at::kDouble));
    gradients.grad_log_decay_ptr = parts.mutable_data_ptr<double>();
    C10_CUDA_CHECK(kernels::cuda::launch_grad_log_decay({p, gradients}, plan,
                                                        c10::cuda::getCurrentCUDAStream()));
    grad_log_decay = parts.sum(at::IntArrayRef({0, 2})).to(log_decay.scalar_type());
  }
  const auto run = [&](ChunkwisePass pass) {
    auto launch = cuda::plan_gradient(pass, p, gradients, device);
    cuda::run(launch, log_decay.options());
  };
  if (needs_q && !grad_out) {
    grad_q = at::zeros(q.sizes(), q.options());
  } else if (needs_q) {
    grad_q = at::empty(q.sizes(), q.options());
    gradients.grad_q_ptr = grad_q.mutable_data_ptr();
    run(ChunkwisePass::kGradQ);
  }
  if (needs_k) {
    grad_k = at::empty(k.sizes(), k.options());
    gradients.grad_k_ptr = grad_k.mutable_data_ptr();
    run(ChunkwisePass::kGradK);
  }
  if (needs_v || grad_initial_state.defined()) {
    grad_v = at::empty(v.sizes(), v.options());
    gradients.grad_v_ptr = grad_v.mutable_data_ptr();
    run(ChunkwisePass::kGradV);
  }
  return {grad_q, grad_k, needs_v ? grad_v : at::Tensor(), grad_log_decay, grad_initial_state};
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CUDA, m) { m.impl("retention_backward", retention_backward_cuda); }

}  // namespace retnet::ops
