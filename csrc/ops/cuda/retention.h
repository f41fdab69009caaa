// SPDX-License-Identifier: Apache-2.0
//
// What retention and its gradients share on their way to the chunkwise kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "kernels/cuda/retention/chunkwise/launch.h"

namespace retnet::ops::cuda {

kernels::cuda::DeviceLimits device_limits(c10::DeviceIndex device);

/// A call of the kernel: its parameters but for the pointers to device memory, and its plan.
struct Call {
  kernels::cuda::ChunkwiseParams params;
  kernels::cuda::ChunkwisePlan plan;
};

/// Plans the forward pass of a checked call; copies nothing.
Call plan_call(const at::Tensor& q, const at::Tensor& v, std::optional<double> scale,
               std::string_view form, std::optional<int64_t> chunk_size,
               const std::optional<at::Tensor>& cu_seqlens);

/// Plans the pass of a gradient for a call whose forward pass the kernel takes. The chunk is the
/// plan's choice.
Call plan_gradient(kernels::cuda::ChunkwisePass pass, const kernels::cuda::ChunkwiseParams& forward,
                   const kernels::cuda::ChunkwiseGradients& gradients,
                   const kernels::cuda::DeviceLimits& device);

/// Why the kernels do not compute the gradients of a planned call, log_decay's where it is asked for, or
/// null.
const char* backward_refusal(const Call& forward, const kernels::cuda::DeviceLimits& device,
                             bool ask_log_decay);

kernels::cuda::RetentionOperand operand_of(const at::Tensor& x);

/// Whether the kernel reads x [B, T, H, D] where it lies; else it reads a contiguous copy.
bool readable(const at::Tensor& x, const kernels::cuda::ChunkwiseParams& p);
at::Tensor readable_or_copy(const at::Tensor& x, const kernels::cuda::ChunkwiseParams& p);

/// Runs a planned call whose pointers are set, but for the workspace, a temporary with the options.
void launch(Call& call, const at::TensorOptions& options);

}  // namespace retnet::ops::cuda
