// SPDX-License-Identifier: Apache-2.0
//
// What the two steps of decoding share on their way to the kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "kernels/cuda/retention/step/launch.h"

namespace retnet::ops::cuda {

/// A call of the kernel, and the tensors that own what its parameters point to.
struct StepCall {
  kernels::cuda::RetentionStepParams params;
  std::vector<at::Tensor> owners;

  /// t, or a copy, with a contiguous last dimension.
  at::Tensor readable(const at::Tensor& t);
};

/// The retention of a checked call, or nothing where the kernel does not take it: float64, heads
/// wider than its limit, a state whose last dimension is not contiguous.
std::optional<StepCall> step_call(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                  const at::Tensor& log_decay, const at::Tensor& state,
                                  std::optional<double> scale,
                                  const std::optional<at::Tensor>& slots);

/// Launches it on the current stream; out [B, H, Dv].
at::Tensor launch(StepCall& call, const at::Tensor& v);

}  // namespace retnet::ops::cuda
