// SPDX-License-Identifier: Apache-2.0
#include "ops/rotary.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "kernels/cuda/rotary/launch.h"
#include "ops/composite/rotary.h"
#include "ops/cuda/dtype.h"

namespace retnet::ops {
namespace {

/// Rotates `q` and `k`, of which one may be undefined, into new tensors. Returns nothing if the kernel
/// does not support them.
std::optional<std::tuple<at::Tensor, at::Tensor>> rotate(at::Tensor q, at::Tensor k,
                                                         const at::Tensor& positions,
                                                         const at::Tensor& frequencies,
                                                         std::string_view style, bool inverse) {
  const at::Tensor& any = q.defined() ? q : k;
  const auto dtype = cuda::kernel_dtype(any);
  if (!dtype) return std::nullopt;
  const bool one_token = any.dim() == 3;  // [B, H, Dk]: one of each batch entry
  kernels::cuda::RotaryParams p;
  p.batch = any.size(0);
  p.tokens = one_token ? 1 : any.size(1);
  p.heads = any.size(-2);
  p.head_dim_qk = any.size(-1);
  p.dtype = *dtype;
  p.interleaved = style == "interleaved";
  p.inverse = inverse;
  p.positions_ptr = positions.const_data_ptr();
  p.positions_64 = positions.scalar_type() == at::kLong;
  const bool per_batch_entry = one_token || positions.dim() == 2;
  p.positions_stride_b = per_batch_entry ? positions.stride(0) : 0;
  p.positions_stride_t = one_token ? 0 : positions.stride(-1);
  const auto radians = frequencies.contiguous();
  p.frequencies_ptr = radians.const_data_ptr<float>();

  if (!kernels::cuda::supports_rotary(p)) return std::nullopt;  // whatever the layout of q and k
  const auto set = [&](kernels::cuda::RotaryOperand& operand, const at::Tensor& x) {
    if (!x.defined()) return;
    operand = {x.const_data_ptr(), x.stride(0), one_token ? 0 : x.stride(1), x.stride(-2)};
  };
  for (at::Tensor* x : {&q, &k}) {
    if (x->defined() && x->stride(-1) != 1) *x = x->contiguous();
  }
  set(p.q, q);
  set(p.k, k);
  if (!kernels::cuda::supports_rotary(
          p)) {  // the channels are not aligned to accesses, but those of copies are
    for (at::Tensor* x : {&q, &k}) {
      if (x->defined()) *x = x->clone(at::MemoryFormat::Contiguous);
    }
    set(p.q, q);
    set(p.k, k);
  }

  const auto output = [](const at::Tensor& x, kernels::cuda::RotaryOperand& operand) {
    auto out = x.defined() ? at::empty(x.sizes(), x.options()) : at::Tensor();
    if (x.defined()) operand.out_ptr = out.mutable_data_ptr();
    return out;
  };
  auto rotated_q = output(q, p.q), rotated_k = output(k, p.k);
  C10_CUDA_CHECK(kernels::cuda::launch_rotary(p, c10::cuda::getCurrentCUDAStream()));
  return std::tuple(rotated_q, rotated_k);
}

std::tuple<at::Tensor, at::Tensor> rotary_cuda(const at::Tensor& q, const at::Tensor& k,
                                               const at::Tensor& positions,
                                               const at::Tensor& frequencies,
                                               std::string_view style) {
  check_rotary("rotary", q, k, positions, frequencies, style);
  const c10::cuda::CUDAGuard guard(q.device());
  if (auto rotated = rotate(q, k, positions, frequencies, style, /*inverse=*/false)) {
    return *rotated;
  }
  return composite::rotary(q, k, positions, frequencies, style);
}

std::tuple<at::Tensor, at::Tensor> rotary_backward_cuda(
    const std::optional<at::Tensor>& grad_rotated_q,
    const std::optional<at::Tensor>& grad_rotated_k, const at::Tensor& positions,
    const at::Tensor& frequencies, std::string_view style, std::array<bool, 2> output_mask) {
  check_rotary_backward(grad_rotated_q, grad_rotated_k, positions, frequencies, style);
  const auto needed = [&](int i, const std::optional<at::Tensor>& grad) {
    return output_mask[i] && grad ? *grad : at::Tensor();
  };
  const auto q = needed(0, grad_rotated_q), k = needed(1, grad_rotated_k);
  if (!q.defined() && !k.defined()) return {};
  const c10::cuda::CUDAGuard guard((q.defined() ? q : k).device());
  if (auto grads = rotate(q, k, positions, frequencies, style, /*inverse=*/true)) return *grads;
  return composite::rotary_backward(grad_rotated_q, grad_rotated_k, positions, frequencies, style,
                                    output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CUDA, m) {
  m.impl("rotary", rotary_cuda);
  m.impl("rotary_backward", rotary_backward_cuda);
}

}  // namespace retnet::ops
