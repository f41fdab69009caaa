// SPDX-License-Identifier: Apache-2.0
#include "ops/composite/gated_group_norm.h"

#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/silu.h>
#include <torch/library.h>

#include <vector>

#include "ops/check.h"
#include "ops/composite/batch_invariance.h"
#include "ops/gated_group_norm.h"

namespace retnet::ops {
namespace composite {
namespace {

/// x [..., Dv] normalised over its channels, and the factor [..., 1] by which the centred values
/// were multiplied.
struct Normed {
  at::Tensor value, inverse_deviation;
};

Normed normalise(const at::Tensor& x, double eps, std::string_view norm) {
  // The variance is taken of the centred values: mean(x^2) - mean(x)^2 cancels.
  const auto centred = norm == "layer" ? x - x.mean(-1, /*keepdim=*/true) : x;
  const auto factor = centred.square().mean(-1, /*keepdim=*/true).add_(eps).rsqrt_();
  return {centred * factor, factor};
}

/// Returns normed * weight + bias. The result is a new tensor if weight or bias is given.
at::Tensor affine(const at::Tensor& normed, const std::optional<at::Tensor>& weight,
                  const std::optional<at::Tensor>& bias) {
  auto result = normed;
  if (weight) result = result * weight->to(normed.scalar_type());
  if (bias) result = result + bias->to(normed.scalar_type());
  return result;
}

/// Whether the entries of the batch x [B, ..., H, Dv] are computed one by one.
bool is_split(const at::Tensor& x) {
  return batch_invariance_required() && x.dim() >= 3 && x.numel() > 0;
}

/// Returns x rounded to the dtype of `input`, as a contiguous tensor.
at::Tensor rounded_like(const at::Tensor& x, const at::Tensor& input) {
  return x.to(input.scalar_type()).contiguous();
}

}  // namespace

at::Tensor accumulate_gated_group_norm(const at::Tensor& x, const std::optional<at::Tensor>& gate,
                                       const std::optional<at::Tensor>& weight,
                                       const std::optional<at::Tensor>& bias, double eps,
                                       std::string_view norm) {
  auto out = affine(normalise(x, eps, norm).value, weight, bias);
  return gate ? out.mul_(at::silu(gate->to(x.scalar_type()))) : out;
}

at::Tensor gated_group_norm(const at::Tensor& x, const std::optional<at::Tensor>& gate,
                            const std::optional<at::Tensor>& weight,
                            const std::optional<at::Tensor>& bias, double eps,
                            std::string_view norm) {
  check_gated_group_norm("gated_group_norm", x, gate, weight, bias, eps, norm);
  const auto forward = [&](const at::Tensor& x, const std::optional<at::Tensor>& gate) {
    return rounded_like(
        accumulate_gated_group_norm(x.to(accumulate_dtype(x)), gate, weight, bias, eps, norm), x);
  };
  if (!is_split(x)) return forward(x, gate);
  return each_batch_entry(
      x.size(0), [&](int64_t b) { return forward(batch_entry(x, b), batch_entry(gate, b)); });
}

namespace {

/// The gradients of x, gate, weight and bias. Those that `needed` leaves out are undefined.
using Grads = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Grads backward_of(const at::Tensor& grad_out, const at::Tensor& x,
                  const std::optional<at::Tensor>& gate, const std::optional<at::Tensor>& weight,
                  const std::optional<at::Tensor>& bias, double eps, std::string_view norm,
                  std::array<bool, 4> needed) {
  const auto dtype = accumulate_dtype(x);
  const auto [normed, inverse_deviation] = normalise(x.to(dtype), eps, norm);
  auto grad_affine = grad_out.to(dtype);  // in turn the gradient of each intermediate value
  at::Tensor grad_x, grad_gate, grad_weight, grad_bias;
  if (gate) {
    const auto g = gate->to(dtype), s = g.sigmoid();
    if (needed[1]) {
      const auto swish_derivative = (1 - s).mul_(g).add_(1).mul_(s);
      grad_gate = rounded_like(
          swish_derivative.mul_(affine(normed, weight, bias)).mul_(grad_affine), *gate);
    }
    grad_affine = grad_affine * s.mul_(g);
  }
  if (bias && needed[3]) {
    // The result is copied. If there is nothing to sum over, sum_to returns its argument, which can
    // be grad_out itself.
    grad_bias = at::sum_to(grad_affine, bias->sizes())
                    .to(bias->scalar_type(), /*non_blocking=*/false, /*copy=*/true,
                        at::MemoryFormat::Contiguous);
  }
  if (weight && needed[2]) {
    grad_weight = rounded_like(at::sum_to(grad_affine * normed, weight->sizes()), *weight);
  }
  if (needed[0]) {
    const auto grad_normed = weight ? grad_affine * weight->to(dtype) : grad_affine;
    auto grad = grad_normed - normed * (grad_normed * normed).mean(-1, /*keepdim=*/true);
    if (norm == "layer") grad.sub_(grad_normed.mean(-1, /*keepdim=*/true));
    grad_x = rounded_like(grad.mul_(inverse_deviation), x);
  }
  return {grad_x, grad_gate, grad_weight, grad_bias};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gated_group_norm_backward(
    const at::Tensor& grad_out, const at::Tensor& x, const std::optional<at::Tensor>& gate,
    const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, double eps,
    std::string_view norm, std::array<bool, 4> output_mask) {
  check_gated_group_norm("gated_group_norm_backward", x, gate, weight, bias, eps, norm);
  check_gated_group_norm_grad(grad_out, x);
  const auto [of_x, of_gate, of_weight, of_bias] = output_mask;
  if (!is_split(x)) return backward_of(grad_out, x, gate, weight, bias, eps, norm, output_mask);
  // The gradients of weight and bias are sums over the whole batch.
  auto grads =
      backward_of(grad_out, x, gate, weight, bias, eps, norm, {false, false, of_weight, of_bias});
  std::vector<at::Tensor> grad_x, grad_gate;
  for (int64_t b = 0; b < x.size(0); ++b) {
    auto entry = backward_of(batch_entry(grad_out, b), batch_entry(x, b), batch_entry(gate, b),
                             weight, bias, eps, norm, {of_x, of_gate, false, false});
    grad_x.push_back(std::get<0>(entry));
    grad_gate.push_back(std::get<1>(entry));
  }
  if (of_x) std::get<0>(grads) = at::cat(grad_x);
  if (gate && of_gate) std::get<1>(grads) = at::cat(grad_gate);
  return grads;
}

}  // namespace composite

TORCH_LIBRARY_IMPL(retnet, CompositeExplicitAutograd, m) {
  m.impl("gated_group_norm", composite::gated_group_norm);
  m.impl("gated_group_norm_backward", composite::gated_group_norm_backward);
}

}  // namespace retnet::ops
