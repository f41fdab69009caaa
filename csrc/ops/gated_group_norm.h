// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "../version.h"

namespace retnet::ops {

/// Normalisation of the Dv channels of each head, times the swish gate (Sun et al. 2023, Eq. 8).
/// For each token n and head h, over the channels d:
///
///     "layer": normed_d = (x_d - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)
///     "rms":   normed_d = x_d / sqrt(mean(x^2) + eps)
///     out_d = (normed_d weight_d + bias_d) gate_d sigmoid(gate_d)
///
///   x       [..., H, Dv]     float32, float64, bfloat16 or float16; any strides. It may have any
///                            number of leading dimensions, including none
///   gate    [..., H, Dv]     x's dtype; absent = no gate (factor 1)
///   weight  [Dv] or [H, Dv]  x's dtype or the accumulation dtype; absent = ones
///   bias    [Dv] or [H, Dv]  x's dtype or the accumulation dtype; absent = zeros. It may be given
///                            without weight, and with either norm
///   eps     at least 0
///   norm    "layer" or "rms"
///
/// Returns out of x's shape and dtype. It is contiguous and shares no memory with an input. It is
/// computed in float32 (in float64 if x is float64), with the variance of the centred values, and
/// rounded once.
///
/// Differentiable once in x, gate, weight and bias.
RETNET_API at::Tensor gated_group_norm(const at::Tensor& x, const std::optional<at::Tensor>& gate,
                                       const std::optional<at::Tensor>& weight,
                                       const std::optional<at::Tensor>& bias, double eps,
                                       std::string_view norm = "layer");

/// Gradients of `gated_group_norm` in x, gate, weight and bias, each of the shape and dtype of its
/// input. A gradient is undefined if `output_mask` does not require it or if its input is absent.
/// The statistics are recomputed. With s = gate sigmoid(gate), g = grad_out s weight:
///
///     grad_x      = rsqrt(var + eps) (g - mean(g) - normed mean(g normed))     ("rms": no mean(g))
///     grad_gate   = grad_out (normed weight + bias) sigmoid(gate) (1 + gate (1 - sigmoid(gate)))
///     grad_weight = sum_n grad_out s normed
///     grad_bias   = sum_n grad_out s
///
///   grad_out  [..., H, Dv]  x's dtype, any strides
///
/// Deterministic. Differentiating the result raises.
RETNET_API std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gated_group_norm_backward(
    const at::Tensor& grad_out, const at::Tensor& x, const std::optional<at::Tensor>& gate,
    const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, double eps,
    std::string_view norm, std::array<bool, 4> output_mask);

/// Checks shapes, dtypes, devices and options. Every implementation calls it first.
void check_gated_group_norm(const char* op, const at::Tensor& x,
                            const std::optional<at::Tensor>& gate,
                            const std::optional<at::Tensor>& weight,
                            const std::optional<at::Tensor>& bias, double eps,
                            std::string_view norm);

/// Checks the incoming gradient. Its shape follows from the checked x.
void check_gated_group_norm_grad(const at::Tensor& grad_out, const at::Tensor& x);

/// Checks weight, bias, eps and norm. The fused decode step calls it too. The normalised tensor is
/// called `name` in messages and has the heads H and channels Dv of `x`.
void check_norm(const char* op, const char* name, const at::Tensor& x,
                const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias,
                double eps, std::string_view norm);

}  // namespace retnet::ops
