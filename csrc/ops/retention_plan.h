// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <string_view>

#include "../version.h"

namespace retnet::ops {

/// What a call of `retention` and of its gradients runs.
struct RetentionPlan {
  std::string implementation;  ///< "kernel", "cpu_" and an instruction set, or "composite"
  std::string reason;          ///< why no kernel runs; empty if one runs
  // The numbers describe the kernel. They are 0 if no kernel runs.
  int64_t inner;           ///< the size to which Dk is padded
  int64_t slice;           ///< columns of Dv per thread block (on the CPU, per thread of a head)
  int64_t chunk;           ///< tokens of a chunk
  int64_t segment_length;  ///< tokens after which a sequence is cut into segments; 0 = not cut
  int64_t segments;        ///< number of sequences, or upper bound of that of their segments
  int64_t copies;          ///< how many of q, k, v are copied: a stride is not a multiple of 4
  /// Why the kernels do not compute all gradients; empty if they do. A log_decay that requires grad
  /// counts as one whose gradient is needed.
  std::string backward_reason;
};

/// Returns the plan of `retention` with the same arguments and checks them in the same way. The
/// plan depends on
///
/// - shapes, strides, dtype and device,
/// - torch.use_deterministic_algorithms,
/// - on the CPU, the number of threads, the environment variable RETNET_CPU and the values of
///   cu_seqlens.
///
/// It does not depend on other values. This function copies no tensor.
RETNET_API RetentionPlan retention_plan(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state = std::nullopt,
    std::optional<double> scale = std::nullopt, std::string_view form = "chunkwise",
    std::optional<int64_t> chunk_size = std::nullopt,
    const std::optional<at::Tensor>& cu_seqlens = std::nullopt);

/// The result of the operator. A schema has no structures.
using RetentionPlanTuple = std::tuple<std::string, std::string, int64_t, int64_t, int64_t, int64_t,
                                      int64_t, int64_t, std::string>;

}  // namespace retnet::ops
