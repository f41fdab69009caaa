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

  /// Returns t, or a copy if its last dimension is not contiguous. The tensor is kept until the launch.
  at::Tensor keep_contiguous(const at::Tensor& t);
};

/// Returns the launch for the retention of a checked call. Returns nothing if the kernel does not
/// support the call, because
/// - it has float64 tensors,
/// - its heads are wider than the limit of the kernel, or
/// - the last dimension of its state is not contiguous.
std::optional<DecodeStepLaunch> prepare_decode_step(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const at::Tensor& state, std::optional<double> scale, const std::optional<at::Tensor>& slots);

/// Launches the kernel on the current stream. Returns out [B, H, Dv].
at::Tensor run(DecodeStepLaunch& launch, const at::Tensor& v);

}  // namespace retnet::ops::cuda
