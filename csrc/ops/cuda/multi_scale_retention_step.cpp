// SPDX-License-Identifier: Apache-2.0
#include "ops/multi_scale_retention_step.h"

#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "ops/composite/multi_scale_retention_step.h"
#include "ops/cuda/decode_step.h"
#include "ops/cuda/dtype.h"

namespace retnet::ops {
namespace {

/// Sets the parameters of weight or bias, which is [Dv] or [H, Dv].
void set_affine(cuda::DecodeStepLaunch& launch, const std::optional<at::Tensor>& affine,
                const void*& ptr, int64_t& stride_h, kernels::cuda::DType& dtype) {
  if (!affine) return;
  const auto kept = launch.keep_contiguous(*affine);
  ptr = kept.const_data_ptr();
  stride_h = kept.dim() == 2 ? kept.stride(0) : 0;
  dtype = cuda::kernel_dtype(kept).value();  // the check admits q's dtype and float32
}

at::Tensor multi_scale_retention_step_cuda(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
    const at::Tensor& log_decay, const at::Tensor& state, const at::Tensor& positions,
    const at::Tensor& frequencies, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double eps, std::string_view norm,
    std::string_view style, std::optional<double> scale, const std::optional<at::Tensor>& slots) {
  check_multi_scale_retention_step(q, k, v, gate, log_decay, state, positions, frequencies, weight,
                                   bias, eps, norm, style, slots);
  const c10::cuda::CUDAGuard guard(q.device());
  auto launch = cuda::prepare_decode_step(q, k, v, log_decay, state, scale, slots);
  if (!launch) {
    return composite::multi_scale_retention_step(q, k, v, gate, log_decay, state, positions,
                                                 frequencies, weight, bias, eps, norm, style, scale,
                                                 slots);
  }
  composite::check_step_memory(q, k, v, gate, log_decay, state, frequencies, weight, bias);
  auto& p = launch->params;
  p.frequencies_ptr = launch->keep_contiguous(frequencies).const_data_ptr<float>();
  p.positions_ptr = positions.const_data_ptr();
  p.positions_stride_b = positions.stride(0);
  p.positions_64 = positions.scalar_type() == at::kLong;
  p.interleaved = style == "interleaved";
  const auto kept_gate = launch->keep_contiguous(gate);
  p.gate_ptr = kept_gate.const_data_ptr();
  p.gate_stride_b = kept_gate.stride(0);
  p.gate_stride_h = kept_gate.stride(1);
  p.norm = norm == "layer" ? kernels::cuda::Norm::kLayer : kernels::cuda::Norm::kRms;
  p.eps = static_cast<float>(eps);
  set_affine(*launch, weight, p.weight_ptr, p.weight_stride_h, p.weight_dtype);
  set_affine(*launch, bias, p.bias_ptr, p.bias_stride_h, p.bias_dtype);
  return cuda::run(*launch, v);
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CUDA, m) {
  m.impl("multi_scale_retention_step", multi_scale_retention_step_cuda);
}

}  // namespace retnet::ops
