// SPDX-License-Identifier: Apache-2.0
//
// Retention composed of ATen operators. It runs on every device and dtype that has no kernel, and
// is the yardstick for the error and the speed of the kernels. `retention.cpp` checks, splits packed
// batches and calls one of the three forms. A form sees a batch of equally long sequences.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "ops/composite/decay.h"

namespace retnet::ops::composite {

/// The implementations of the ops, to which calls without a kernel fall back.
std::tuple<at::Tensor, at::Tensor> retention(const at::Tensor& q, const at::Tensor& k,
                                             const at::Tensor& v, const at::Tensor& log_decay,
                                             const std::optional<at::Tensor>& initial_state,
                                             std::optional<double> scale, std::string_view form,
                                             std::optional<int64_t> chunk_size,
                                             const std::optional<at::Tensor>& cu_seqlens);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> retention_backward(
    const std::optional<at::Tensor>& grad_out, const std::optional<at::Tensor>& grad_final_state,
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state, std::optional<double> scale,
    std::string_view form, std::optional<int64_t> chunk_size,
    const std::optional<at::Tensor>& cu_seqlens, std::array<bool, 5> output_mask);

/// A batch of sequences of one length T >= 1. None of B, H, Dk and Dv is zero.
struct Inputs {
  at::Tensor q, k, v;        // [B, T, H, Dk], [B, T, H, Dk], [B, T, H, Dv], dtype of the caller
  at::Tensor initial_state;  // [B, H, Dk, Dv], dtype of the decay; undefined = zeros
  const Decay& decay;
  double scale;
  int64_t chunk_size;  // at most T

  int64_t num_tokens() const { return q.size(1); }
};

/// The tensors that a form writes, of any dtype and strides. The form writes each element.
struct Outputs {
  at::Tensor out;          // [B, T, H, Dv]
  at::Tensor final_state;  // [B, H, Dk, Dv]
};

/// The incoming gradients. One of them may be undefined, which means zeros.
struct OutputGrads {
  at::Tensor grad_out;          // [B, T, H, Dv]
  at::Tensor grad_final_state;  // [B, H, Dk, Dv]
};

/// The tensors that a backward writes. An undefined one is not required. The gradient of
/// log_decay is added to its tensor, and the others are overwritten.
struct InputGrads {
  at::Tensor grad_q, grad_k, grad_v;  // [B, T, H, D]
  at::Tensor grad_log_decay;          // [H], float64
  at::Tensor grad_initial_state;      // [B, H, Dk, Dv]
};

void chunkwise_forward(const Inputs& in, const Outputs& out);
void chunkwise_backward(const Inputs& in, const OutputGrads& incoming, const InputGrads& out);
void parallel_forward(const Inputs& in, const Outputs& out);
void parallel_backward(const Inputs& in, const OutputGrads& incoming, const InputGrads& out);
void recurrent_forward(const Inputs& in, const Outputs& out);
void recurrent_backward(const Inputs& in, const OutputGrads& incoming, const InputGrads& out);

/// Tokens first .. first + n - 1 of x [B, T, H, D] as a contiguous [B, H, n, D] of the dtype of the
/// decay. If x is undefined, the result is undefined.
at::Tensor heads_first(const at::Tensor& x, int64_t first, int64_t n, const Decay& decay);

/// The inverse: rounds x [B, H, n, D] to tokens first .. first + n - 1 of `target` [B, T, H, D].
void store_heads_first(const at::Tensor& target, int64_t first, const at::Tensor& x);

/// A copy of `state`, or zeros [B, H, Dk, Dv] if it is undefined.
at::Tensor state_or_zeros(const at::Tensor& state, const Inputs& in);

/// The sum of x [B, H, ...] over all dimensions except the heads, in float64: [H].
at::Tensor sum_per_head(const at::Tensor& x);

/// cu_seqlens on the host. The function waits for the device and checks that the bounds start at 0,
/// end at T and never decrease. Its errors name `op`.
at::Tensor packed_bounds(const char* op, const at::Tensor& q, const at::Tensor& cu_seqlens);

}  // namespace retnet::ops::composite
