// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>
#include <tuple>

#include "../version.h"

namespace retnet::ops {

/// Retention (Sun et al. 2023, section 2.1), per batch b and head h, with
///
///     gamma = exp(log_decay[h])
///     S_t   = gamma S_{t-1} + k_t^T v_t,   S_{-1} = initial_state          (Eq. 6, recurrent form)
///     out_t = scale q_t S_t
///           = scale sum_{m <= t} gamma^(t-m) (q_t . k_m) v_m + scale gamma^(t+1) q_t S_{-1}
///
/// gamma^0 is 1 for every gamma, gamma = 0 (log_decay = -inf) included.
///
///   q, k           [B, T, H, Dk]   float32, float64, bfloat16 or float16; any strides
///   v              [B, T, H, Dv]   q's dtype
///   log_decay      [H]             ln gamma, in [-inf, 0]; float32 (float64 where q is float64)
///   initial_state  [N, H, Dk, Dv]  log_decay's dtype; absent = zeros. N = B, or the number of
///                                  packed sequences
///   scale          factor of q.k; absent = Dk^-0.5, as in scaled_dot_product_attention
///   form           "chunkwise" (Eq. 7): parallel inside chunks, recurrent across; linear in T
///                  "parallel"  (Eq. 5): (Q K^T * D) V; quadratic in T
///                  "recurrent" (Eq. 6): token by token, with a state of O(Dk Dv)
///   chunk_size     tokens per chunk of the chunkwise form, any positive number; absent = chosen by
///                  the implementation
///   cu_seqlens     [N+1] int32: B is 1 and sequence n takes the tokens cu_seqlens[n] ..
///                  cu_seqlens[n+1] - 1; starts at 0, ends at T, never falls. It is read on the
///                  host, once, but by the CUDA kernel
///
/// Returns out [B, T, H, Dv] of q's dtype and final_state [N, H, Dk, Dv] = S_{T-1} of log_decay's
/// dtype (T = 0: a copy of initial_state, or zeros). Both are contiguous and share no memory with
/// an input. Sums and states are kept in log_decay's dtype. Where no kernel runs, nothing but out is
/// rounded to q's dtype; the chunkwise kernels multiply operands of 16 bits, scores and states
/// among them, on CUDA (bfloat16 and float16) and where the CPU multiplies bfloat16
/// (docs/numerics.md).
///
/// Differentiable once in q, k, v, log_decay and initial_state; every form gives the same
/// gradients. A log_decay that is positive or NaN raises on the CPU; on other devices, where
/// reading it would wait for the device, it makes its head NaN.
RETNET_API std::tuple<at::Tensor, at::Tensor> retention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state = std::nullopt,
    std::optional<double> scale = std::nullopt, std::string_view form = "chunkwise",
    std::optional<int64_t> chunk_size = std::nullopt,
    const std::optional<at::Tensor>& cu_seqlens = std::nullopt);

/// Gradients of `retention` in q, k, v, log_decay and initial_state; those that `output_mask` does
/// not ask for are undefined. With the adjoint of the state R_t (derivation: docs/numerics.md)
///
///     R_{T-1} = grad_state + scale q_{T-1}^T grad_out_{T-1}
///     R_t     = gamma R_{t+1} + scale q_t^T grad_out_t
///     S'_t    = gamma (S'_{t-1} + S_{t-1}),   S'_{-1} = 0
///
///     grad_q_t           = scale S_t grad_out_t
///     grad_k_t           = R_t v_t
///     grad_v_t           = k_t R_t
///     grad_log_decay     = sum_t scale q_t S'_t grad_out_t + <S'_{T-1}, grad_state>
///     grad_initial_state = gamma R_0
///
///   grad_out    [B, T, H, Dv]   q's dtype, any strides; absent = zeros
///   grad_state  [N, H, Dk, Dv]  log_decay's dtype, any strides; absent = zeros
///
/// Deterministic; keeps no state per token or chunk. Differentiating the result raises.
RETNET_API std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
retention_backward(const std::optional<at::Tensor>& grad_out,
                   const std::optional<at::Tensor>& grad_state, const at::Tensor& q,
                   const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
                   const std::optional<at::Tensor>& initial_state, std::optional<double> scale,
                   std::string_view form, std::optional<int64_t> chunk_size,
                   const std::optional<at::Tensor>& cu_seqlens, std::array<bool, 5> output_mask);

/// Every implementation's first statement, in the name of `op`: shapes, dtypes, devices and
/// options, and on the CPU the values of log_decay.
void check_retention(const char* op, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& log_decay, const std::optional<at::Tensor>& initial_state,
                     std::string_view form, std::optional<int64_t> chunk_size,
                     const std::optional<at::Tensor>& cu_seqlens);

/// The same of the two incoming gradients, whose shapes follow from the checked inputs.
void check_retention_grads(const std::optional<at::Tensor>& grad_out,
                           const std::optional<at::Tensor>& grad_state, const at::Tensor& q,
                           const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
                           const std::optional<at::Tensor>& cu_seqlens);

}  // namespace retnet::ops
