// SPDX-License-Identifier: Apache-2.0
//
// The parameters of the retention kernels. A call of a kernel is the work of one thread on one head
// of one sequence, or on a slice of its columns. The state stays in cache from the first token to
// the last. Strides are in elements.
#pragma once

#include <cstddef>
#include <cstdint>

namespace retnet::kernels::cpu {

/// Tokens of a chunk.
constexpr int64_t kChunk = 64;

/// The powers of gamma of one head. No exponent is negative. gamma^0 is 1 for every gamma.
struct DecayTables {
  bool gamma_is_zero;            // the old state is dropped, not multiplied, because NaN * 0 is NaN
  const float* power;            // [kChunk + 1] gamma^n
  const float* power_minus_one;  // [kChunk + 1] gamma^n - 1, by which a state decays
  const float* state_weight;     // [kChunk]     scale gamma^(i+1): of the state in out_i
  // The weights of row i of the scores begin at score_weight + kChunk - 1 - i.
  const float* score_weight;  // [2 kChunk]   scale gamma^(kChunk-1-x), then zeros
  // Those of row j of the transposed scores begin at score_weight_transposed + kChunk - 1 - j.
  const float* score_weight_transposed;  // [2 kChunk]   kChunk - 1 zeros, then scale gamma^n
  // For the derivatives with respect to log_decay:
  const float* power_derivative;         // [kChunk + 1] n gamma^n
  const float* score_weight_derivative;  // [2 kChunk]   score_weight times its exponents
};

/// The tokens of one head, with dense channels of the dtype of the kernel. Null stands for zeros.
struct TokenView {
  const void* ptr = nullptr;
  int64_t stride = 0;  // of a token
};
/// The same, to be written. Null if it is not required.
struct MutableTokenView {
  void* ptr = nullptr;
  int64_t stride = 0;
};

/// The state of one head, [head_dim_qk, head_dim_v]. Null stands for zeros.
struct StateView {
  const float* ptr = nullptr;
  int64_t row_stride = 0, column_stride = 0;
};
/// The same, to be written. Null if it is not required.
struct MutableStateView {
  float* ptr = nullptr;
  int64_t row_stride = 0, column_stride = 0;
};

/// The pass forward in time. With S the state before a chunk of L tokens, and i, j tokens of the
/// chunk:
///     out_i = scale sum_{j <= i} gamma^(i-j) (q_i . k_j) v_j + scale gamma^(i+1) q_i S
///     S    <- gamma^L S + sum_j gamma^(L-1-j) k_j^T v_j
/// It computes
///     out     of the retention op
///     grad_q  with q = grad_out, k = v, v = k, grad_out = q, and the states transposed
/// Columns of v, out and the states may be computed alone.
struct RetentionForwardParams {
  int64_t tokens, head_dim_qk, head_dim_v;
  TokenView q, k, v;     // [tokens, head_dim_qk] twice, [tokens, head_dim_v]
  MutableTokenView out;  // [tokens, head_dim_v]
  StateView initial_state;
  MutableStateView final_state;
  DecayTables decay{};
  // The derivative with respect to log_decay, of the columns at hand:
  //     sum_i grad_out_i . dout_i/dlog_decay + <dS/dlog_decay, grad_final_state>
  double* grad_log_decay = nullptr;  // null: not required
  TokenView grad_out;                // [tokens, head_dim_v]
  StateView grad_final_state;
};

/// The pass backward in time computes the gradients of k and v. With R the gradient of the state,
/// over a chunk of L tokens:
///     grad_v_j = scale sum_{i >= j} gamma^(i-j) (q_i . k_j) grad_out_i + gamma^(L-1-j) k_j R
///     grad_k_j = scale sum_{i >= j} gamma^(i-j) (grad_out_i . v_j) q_i + gamma^(L-1-j) R v_j
///     R       <- gamma^L R + scale sum_i gamma^(i+1) q_i^T grad_out_i
/// If grad_k is not required, columns of v may be computed alone. If grad_v is not required,
/// columns of k may.
struct RetentionBackwardParams {
  int64_t tokens, head_dim_qk, head_dim_v;
  TokenView q, k, v, grad_out;  // [tokens, head_dim_qk] twice, [tokens, head_dim_v] twice
  MutableTokenView grad_k;      // [tokens, head_dim_qk]
  MutableTokenView grad_v;      // [tokens, head_dim_v]
  StateView grad_final_state;
  MutableStateView grad_initial_state;
  DecayTables decay{};
};

/// A decode step of one head: S <- gamma S + k^T v, out = scale q S, in one pass over the state.
/// All values are float.
struct DecodeStepParams {
  int64_t head_dim_qk, head_dim_v;
  const float *q, *k;     // [head_dim_qk]
  const float* v;         // [head_dim_v]
  float* state;           // [head_dim_qk] rows of head_dim_v
  int64_t state_stride;   // of a row
  bool gamma_is_zero;     // the old state is dropped, because NaN * 0 is NaN
  float power_minus_one;  // gamma - 1
  float scale;
  float* out;  // [head_dim_v]
};

}  // namespace retnet::kernels::cpu
