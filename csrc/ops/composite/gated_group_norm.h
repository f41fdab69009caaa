// SPDX-License-Identifier: Apache-2.0
//
// gated_group_norm by ATen operations. The first two functions are the operators' implementations,
// for kernels to fall back on; the third is the part that the fused step of decoding shares.
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

/// The same for an x that has the dtype of accumulation; the result keeps that dtype, unrounded.
at::Tensor accumulate_gated_group_norm(const at::Tensor& x, const std::optional<at::Tensor>& gate,
                                       const std::optional<at::Tensor>& weight,
                                       const std::optional<at::Tensor>& bias, double eps,
                                       std::string_view norm);

}  // namespace retnet::ops::composite
