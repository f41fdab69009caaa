// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

namespace retnet::ops::composite {

/// The op for calls without a kernel. Implementations for a device fall back to it.
at::Tensor multi_scale_retention_step(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
    const at::Tensor& log_decay, const at::Tensor& state, const at::Tensor& positions,
    const at::Tensor& frequencies, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double eps, std::string_view norm,
    std::string_view style, std::optional<double> scale, const std::optional<at::Tensor>& slots);

/// Raises an error if the state shares memory with another tensor that the op reads.
void check_step_memory(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                       const at::Tensor& gate, const at::Tensor& log_decay, const at::Tensor& state,
                       const at::Tensor& frequencies, const std::optional<at::Tensor>& weight,
                       const std::optional<at::Tensor>& bias);

}  // namespace retnet::ops::composite
