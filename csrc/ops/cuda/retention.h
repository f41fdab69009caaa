// SPDX-License-Identifier: Apache-2.0
//
// What retention and its gradients share on their way to the chunkwise kernel.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "kernels/cuda/retention/chunkwise/launch.h"

namespace retnet::ops::cuda {

/// A launch of the chunkwise kernel: its plan, and its parameters, whose pointers to device memory the
/// caller sets.
struct ChunkwiseLaunch {
  kernels::cuda::ChunkwiseParams params;
  kernels::cuda::ChunkwisePlan plan;
};

/// Plans the forward pass of a checked call. It copies nothing.
ChunkwiseLaunch plan_forward(const at::Tensor& q, const at::Tensor& v, std::optional<double> scale,
                             std::string_view form, std::optional<int64_t> chunk_size,
                             const std::optional<at::Tensor>& cu_seqlens);

/// Plans the pass of a gradient for a call whose forward pass the kernel supports. The plan chooses the
/// chunk.
ChunkwiseLaunch plan_gradient(kernels::cuda::ChunkwisePass pass,
                              const kernels::cuda::ChunkwiseParams& forward,
                              const kernels::cuda::ChunkwiseGradients& gradients,
                              const kernels::cuda::DeviceLimits& device);

/// Returns why the kernels do not compute the gradients of a planned forward pass, or null if they do. The
/// gradient of log_decay counts if it is needed.
const char* backward_unsupported_reason(const ChunkwiseLaunch& forward,
                                        const kernels::cuda::DeviceLimits& device,
                                        bool needs_grad_log_decay);

kernels::cuda::RetentionOperand make_operand(const at::Tensor& x);

/// Whether the kernel reads x [B, T, H, D] in place. Otherwise it needs a contiguous copy.
bool can_read_in_place(const at::Tensor& x, const kernels::cuda::ChunkwiseParams& p);
at::Tensor in_place_or_copy(const at::Tensor& x, const kernels::cuda::ChunkwiseParams& p);

/// Launches the kernel. The caller has set all pointers except that of the workspace, which is a temporary
/// tensor with these options.
void run(ChunkwiseLaunch& launch, const at::TensorOptions& options);

}  // namespace retnet::ops::cuda
