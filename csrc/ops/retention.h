// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "../version.h"

namespace retnet::ops {

/// Retention (Sun et al. 2023, section 2.1). For each batch b and head h,
///
///     gamma = exp(log_decay[h])
///     S_t   = gamma S_{t-1} + k_t^T v_t,   S_{-1} = initial_state          (Eq. 6, recurrent form)
///     out_t = scale q_t S_t
///           = scale sum_{m <= t} gamma^(t-m) (q_t . k_m) v_m + scale gamma^(t+1) q_t S_{-1}
///
/// gamma^0 is 1 for every gamma, including gamma = 0 (log_decay = -inf).
///
///   q, k           [B, T, H, Dk]   float32, float64, bfloat16 or float16; any strides
///   v              [B, T, H, Dv]   q's dtype
///   log_decay      [H]             ln gamma, in [-inf, 0]; float32 (float64 if q is float64)
///   initial_state  [N, H, Dk, Dv]  log_decay's dtype; absent = zeros. N = B, or the number of
///                                  packed sequences
///   scale          factor of q.k; absent = Dk^-0.5, as in scaled_dot_product_attention
///   form           "chunkwise" (Eq. 7): parallel inside chunks, recurrent across; linear in T
///                  "parallel"  (Eq. 5): (Q K^T * D) V; quadratic in T
///                  "recurrent" (Eq. 6): token by token, with a state of O(Dk Dv)
///   chunk_size     tokens per chunk in the chunkwise form, any positive number; absent = chosen by
///                  the implementation
///   cu_seqlens     [N+1] int32. B is 1, and sequence n has the tokens cu_seqlens[n] to
///                  cu_seqlens[n+1] - 1. It starts at 0, ends at T and never decreases. It is read
///                  once on the host, except by the CUDA kernel, which reads it on the device
///
/// Returns out [B, T, H, Dv] of q's dtype and final_state [N, H, Dk, Dv] = S_{T-1} of log_decay's
/// dtype. If T = 0, final_state is a copy of initial_state, or zeros. Both results are contiguous
/// and share no memory with an input.
///
/// Sums and states have log_decay's dtype. If no kernel runs, only out is rounded to q's dtype. The
/// chunkwise kernels multiply 16-bit operands, including scores and states, on CUDA (bfloat16 and
/// float16) and on CPUs that multiply bfloat16 (docs/numerics.md).
///
/// Differentiable once in q, k, v, log_decay and initial_state. Every form gives the same
/// gradients.
///
/// On the CPU, a log_decay that is positive or NaN raises. On other devices, reading it would wait
/// for the device, so it makes the outputs of its head NaN instead.
RETNET_API std::tuple<at::Tensor, at::Tensor> retention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state = std::nullopt,
    std::optional<double> scale = std::nullopt, std::string_view form = "chunkwise",
    std::optional<int64_t> chunk_size = std::nullopt,
    const std::optional<at::Tensor>& cu_seqlens = std::nullopt);

/// Gradients of `retention` in q, k, v, log_decay and initial_state. Those that `output_mask` does
/// not require are undefined. docs/numerics.md derives them. R_t is the gradient of the state S_t:
///
///     R_{T-1} = grad_final_state + scale q_{T-1}^T grad_out_{T-1}
///     R_t     = gamma R_{t+1} + scale q_t^T grad_out_t
///     S'_t    = gamma (S'_{t-1} + S_{t-1}),   S'_{-1} = 0
///
///     grad_q_t           = scale S_t grad_out_t
///     grad_k_t           = R_t v_t
///     grad_v_t           = k_t R_t
///     grad_log_decay     = sum_t scale q_t S'_t grad_out_t + <S'_{T-1}, grad_final_state>
///     grad_initial_state = gamma R_0
///
///   grad_out          [B, T, H, Dv]   q's dtype, any strides; absent = zeros
///   grad_final_state  [N, H, Dk, Dv]  log_decay's dtype, any strides; absent = zeros. The schema
///                                     calls it grad_state
///
/// Deterministic. It keeps no state per token or chunk. Differentiating the result raises.
RETNET_API std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
retention_backward(const std::optional<at::Tensor>& grad_out,
                   const std::optional<at::Tensor>& grad_final_state, const at::Tensor& q,
                   const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
                   const std::optional<at::Tensor>& initial_state, std::optional<double> scale,
                   std::string_view form, std::optional<int64_t> chunk_size,
                   const std::optional<at::Tensor>& cu_seqlens, std::array<bool, 5> output_mask);

/// Checks shapes, dtypes, devices and options, and on the CPU the values of log_decay. Messages
/// name `op`. Every implementation calls it first.
void check_retention(const char* op, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& log_decay, const std::optional<at::Tensor>& initial_state,
                     std::string_view form, std::optional<int64_t> chunk_size,
                     const std::optional<at::Tensor>& cu_seqlens);

/// Checks the two incoming gradients. Their shapes follow from the checked inputs.
void check_retention_grads(const std::optional<at::Tensor>& grad_out,
                           const std::optional<at::Tensor>& grad_final_state, const at::Tensor& q,
                           const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
                           const std::optional<at::Tensor>& cu_seqlens);

}  // namespace retnet::ops
