// SPDX-License-Identifier: Apache-2.0
//
// gated_group_norm, composed of ATen operators. The first two functions implement the ops for calls
// without a kernel. The fused decode step shares the third one.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

namespace retnet::ops::composite {

at::Tensor gated_group_norm(const at::Tensor& x, const std::optional<at::Tensor>& gate,
                            const std::optional<at::Tensor>& weight,
                            const std::optional<at::Tensor>& bias, double eps,
                            std::string_view norm);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gated_group_norm_backward(
    const at::Tensor& grad_out, const at::Tensor& x, const std::optional<at::Tensor>& gate,
    const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, double eps,
    std::string_view norm, std::array<bool, 4> output_mask);

/// The same for an x in the accumulation dtype. The result keeps that dtype and is not rounded.
at::Tensor accumulate_gated_group_norm(const at::Tensor& x, const std::optional<at::Tensor>& gate,
                                       const std::optional<at::Tensor>& weight,
                                       const std::optional<at::Tensor>& bias, double eps,
                                       std::string_view norm);

}  // namespace retnet::ops::composite
