// SPDX-License-Identifier: Apache-2.0
//
// What retention_step and multi_scale_retention_step share on their way to the decode step kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "kernels/cuda/retention/decode_step/launch.h"

namespace retnet::ops::cuda {

/// A launch of the kernel: its parameters, and the tensors that own what these point to.
struct DecodeStepLaunch {
  kernels::cuda::DecodeStepParams params;
  std::vector<at::Tensor> owners;

  /// t, or a copy, with a contiguous last dimension; kept until the launch.
  at::Tensor keep_contiguous(const at::Tensor& t);
};

/// The launch for the retention of a checked call, or nothing if the kernel does not take it:
/// - float64,
/// - heads wider than its limit,
/// - a state whose last dimension is not contiguous.
std::optional<DecodeStepLaunch> prepare_decode_step(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const at::Tensor& state, std::optional<double> scale, const std::optional<at::Tensor>& slots);

/// Launches it on the current stream; out [B, H, Dv].
at::Tensor run(DecodeStepLaunch& launch, const at::Tensor& v);

}  // namespace retnet::ops::cuda
