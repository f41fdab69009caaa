// SPDX-License-Identifier: Apache-2.0
#include "ops/gated_group_norm.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "kernels/cuda/norm/launch.h"
#include "ops/composite/gated_group_norm.h"
#include "ops/cuda/dtype.h"

namespace retnet::ops {
namespace {

using cuda::kernel_dtype;

/// Returns t [..., H, Dv] as [N, H, Dv] with contiguous channels. It is a view if the strides allow it.
at::Tensor flatten_tokens(const at::Tensor& t) {
  const auto tokens = t.reshape({-1, t.size(-2), t.size(-1)});
  return tokens.stride(-1) == 1 ? tokens : tokens.contiguous();
}

std::optional<at::Tensor> flatten_tokens(const std::optional<at::Tensor>& t) {
  return t ? std::optional(flatten_tokens(*t)) : std::nullopt;
}

/// Returns weight or bias with contiguous channels.
std::optional<at::Tensor> contiguous_channels(const std::optional<at::Tensor>& t) {
  return t ? std::optional(t->stride(-1) == 1 ? *t : t->contiguous()) : std::nullopt;
}

int64_t stride_h(const at::Tensor& affine) { return affine.dim() == 2 ? affine.stride(0) : 0; }

/// Returns the parameters that forward and backward share, or nothing if no kernel supports the dtype
/// of x. `x` and `gate` are [N, H, Dv].
template <class Params>
std::optional<Params> make_params(const at::Tensor& x, const std::optional<at::Tensor>& gate,
                                  const std::optional<at::Tensor>& weight,
                                  const std::optional<at::Tensor>& bias, double eps,
                                  std::string_view norm) {
  const auto dtype = kernel_dtype(x);
  if (!dtype) return std::nullopt;
  Params p;
  p.tokens = x.size(0);
  p.heads = x.size(1);
  p.head_dim_v = x.size(2);
  p.dtype = *dtype;
  p.norm = norm == "layer" ? kernels::cuda::Norm::kLayer : kernels::cuda::Norm::kRms;
  p.eps = static_cast<float>(eps);
  p.x_ptr = x.const_data_ptr();
  p.x_stride_n = x.stride(0);
  p.x_stride_h = x.stride(1);
  if (gate) {
    p.gate_ptr = gate->const_data_ptr();
    p.gate_stride_n = gate->stride(0);
    p.gate_stride_h = gate->stride(1);
  }
  if (weight) {
    p.weight_ptr = weight->const_data_ptr();
    p.weight_dtype = kernel_dtype(*weight).value();  // the check admits x's dtype and float32
    p.weight_stride_h = stride_h(*weight);
  }
  if (bias) {
    p.bias_ptr = bias->const_data_ptr();
    p.bias_dtype = kernel_dtype(*bias).value();
    p.bias_stride_h = stride_h(*bias);
  }
  return p;
}

at::Tensor gated_group_norm_cuda(const at::Tensor& x, const std::optional<at::Tensor>& gate,
                                 const std::optional<at::Tensor>& weight,
                                 const std::optional<at::Tensor>& bias, double eps,
                                 std::string_view norm) {
  check_gated_group_norm("gated_group_norm", x, gate, weight, bias, eps, norm);
  const c10::cuda::CUDAGuard guard(x.device());
  auto out = at::empty(x.sizes(), x.options());
  if (x.numel() == 0) return out;

  const auto x_tokens = flatten_tokens(x);
  const auto gate_tokens = flatten_tokens(gate);
  const auto w = contiguous_channels(weight), b = contiguous_channels(bias);
  auto p = make_params<kernels::cuda::GatedGroupNormParams>(x_tokens, gate_tokens, w, b, eps, norm);
  if (p) p->out_ptr = out.mutable_data_ptr();
  if (!p || !kernels::cuda::supports_gated_group_norm(*p)) {
    return composite::gated_group_norm(x, gate, weight, bias, eps, norm);
  }
  C10_CUDA_CHECK(kernels::cuda::launch_gated_group_norm(*p, c10::cuda::getCurrentCUDAStream()));
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gated_group_norm_backward_cuda(
    const at::Tensor& grad_out, const at::Tensor& x, const std::optional<at::Tensor>& gate,
    const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, double eps,
    std::string_view norm, std::array<bool, 4> output_mask) {
  check_gated_group_norm("gated_group_norm_backward", x, gate, weight, bias, eps, norm);
  check_gated_group_norm_grad(grad_out, x);
  const c10::cuda::CUDAGuard guard(x.device());
  const auto fall_back = [&] {
    return composite::gated_group_norm_backward(grad_out, x, gate, weight, bias, eps, norm,
                                                output_mask);
  };
  if (x.numel() == 0) return fall_back();

  const auto x_tokens = flatten_tokens(x), grad_out_tokens = flatten_tokens(grad_out);
  const auto gate_tokens = flatten_tokens(gate);
  const auto w = contiguous_channels(weight), b = contiguous_channels(bias);
  auto p = make_params<kernels::cuda::GatedGroupNormBackwardParams>(x_tokens, gate_tokens, w, b,
                                                                    eps, norm);
  if (!p) return fall_back();
  p->grad_out_ptr = grad_out_tokens.const_data_ptr();
  p->grad_out_stride_n = grad_out_tokens.stride(0);
  p->grad_out_stride_h = grad_out_tokens.stride(1);
  if (!kernels::cuda::supports_gated_group_norm(*p)) return fall_back();

  at::Tensor grad_x, grad_gate, grad_weight, grad_bias;  // the last two in float32 until the end
  if (output_mask[0]) {
    grad_x = at::empty(x.sizes(), x.options());
    p->grad_x_ptr = grad_x.mutable_data_ptr();
  }
  if (output_mask[1] && gate) {
    grad_gate = at::empty(x.sizes(), x.options());
    p->grad_gate_ptr = grad_gate.mutable_data_ptr();
  }
  if (output_mask[2] && weight) {
    grad_weight = at::empty(weight->sizes(), x.options().dtype(at::kFloat));
    p->grad_weight_ptr = grad_weight.mutable_data_ptr<float>();
    p->grad_weight_per_head = weight->dim() == 2;
  }
  if (output_mask[3] && bias) {
    grad_bias = at::empty(bias->sizes(), x.options().dtype(at::kFloat));
    p->grad_bias_ptr = grad_bias.mutable_data_ptr<float>();
    p->grad_bias_per_head = bias->dim() == 2;
  }
  const auto workspace =
      at::empty({static_cast<int64_t>(kernels::cuda::gated_group_norm_workspace_bytes(*p))},
                x.options().dtype(at::kByte));
  p->workspace_ptr = workspace.mutable_data_ptr();
  C10_CUDA_CHECK(
      kernels::cuda::launch_gated_group_norm_backward(*p, c10::cuda::getCurrentCUDAStream()));

  if (grad_weight.defined()) grad_weight = grad_weight.to(weight->scalar_type());
  if (grad_bias.defined()) grad_bias = grad_bias.to(bias->scalar_type());
  return {grad_x, grad_gate, grad_weight, grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CUDA, m) {
  m.impl("gated_group_norm", gated_group_norm_cuda);
  m.impl("gated_group_norm_backward", gated_group_norm_backward_cuda);
}

}  // namespace retnet::ops
