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
  std::string reason;          ///< why not the kernel; empty where it runs
  // Of the kernel, else 0:
  int64_t inner;           ///< Dk is padded to this
  int64_t slice;           ///< columns of Dv of a block of threads (CPU: of a shared head)
  int64_t chunk;           ///< tokens of a chunk
  int64_t segment_length;  ///< tokens after which a sequence is cut into parts; 0: not cut
  int64_t segments;        ///< sequences, or room for their parts
  int64_t copies;          ///< of q, k, v, those made contiguous first: strides not multiples of 4
  /// Why not all gradients are the kernel's; empty where they are. A log_decay that requires a
  /// gradient counts as one whose gradient is asked for.
  std::string backward_reason;
};

/// The plan of `retention` with the same arguments, which are checked as there. It depends on
/// shapes, strides, dtype, device and torch.use_deterministic_algorithms, on the CPU also on the
/// number of threads, cu_seqlens and RETNET_CPU, never on other values, and copies nothing.
RETNET_API RetentionPlan retention_plan(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state = std::nullopt,
    std::optional<double> scale = std::nullopt, std::string_view form = "chunkwise",
    std::optional<int64_t> chunk_size = std::nullopt,
    const std::optional<at::Tensor>& cu_seqlens = std::nullopt);

/// The result of the operator, whose schema has no structures.
using RetentionPlanTuple = std::tuple<std::string, std::string, int64_t, int64_t, int64_t, int64_t,
                                      int64_t, int64_t, std::string>;

}  // namespace retnet::ops
