// SPDX-License-Identifier: Apache-2.0
//
// The parallel form (Eq. 5) computes (Q K^T * D) V over all pairs of tokens, so its cost is
// quadratic in T. It takes a block of rows of the score matrix at a time, with the tokens up to the
// end of the block.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

#include "ops/composite/retention.h"

namespace retnet::ops::composite {
namespace {

constexpr int64_t kRowsPerBlock = 256;

/// Calls body(first row, number of rows) for the blocks of rows of the score matrix, in order.
template <class Body>
void for_each_block(int64_t num_tokens, const Body& body) {
  for (int64_t first = 0; first < num_tokens; first += kRowsPerBlock) {
    body(first, std::min(kRowsPerBlock, num_tokens - first));
  }
}

/// gamma^(T-1-j), the weight of token j in the final state: [H, T, 1].
at::Tensor weight_in_final_state(const Inputs& in) {
  return in.decay.powers(in.num_tokens()).flip(-1).unsqueeze(-1);
}

/// scale gamma^(i+1), the weight of the initial state in out_i: [H, n, 1].
at::Tensor weight_of_initial_state(const Inputs& in, int64_t first, int64_t n) {
  return in.decay.powers(n, first + 1).mul_(in.scale).unsqueeze(-1);
}

/// gamma^T S_0.
at::Tensor decayed_initial_state(const Inputs& in) {
  auto S = state_or_zeros(in.initial_state, in);
  in.decay.decay_(S, in.num_tokens());
  return S;
}

/// Returns the initial state as the output sees it. It is zero if gamma = 0.
at::Tensor visible_initial_state(const Inputs& in) {
  auto S = state_or_zeros(in.initial_state, in);
  in.decay.zero_where_gamma_is_zero_(S);
  return S;
}

}  // namespace

void parallel_forward(const Inputs& in, const Outputs& out) {
  const auto& decay = in.decay;
  const int64_t T = in.num_tokens();
  const auto k = heads_first(in.k, 0, T, decay), v = heads_first(in.v, 0, T, decay);
  const auto S0 = visible_initial_state(in);
  for_each_block(T, [&](int64_t first, int64_t n) {
    const int64_t end = first + n;
    const auto q = heads_first(in.q, first, n, decay);
    auto scores = at::matmul(q, k.narrow(2, 0, end).transpose(-1, -2));
    scores.mul_(decay.matrix(n, end, first).mul_(in.scale));
    auto o = at::matmul(scores, v.narrow(2, 0, end));
    if (in.initial_state.defined()) {
      o.add_(at::matmul(q * weight_of_initial_state(in, first, n), S0));
    }
    store_heads_first(out.out, first, o);
  });
  const auto local = at::matmul((k * weight_in_final_state(in)).transpose(-1, -2), v);
  out.final_state.copy_(local.add_(decayed_initial_state(in)));
}

void parallel_backward(const Inputs& in, const OutputGrads& incoming, const InputGrads& out) {
  const auto& decay = in.decay;
  const int64_t T = in.num_tokens();
  const auto k = heads_first(in.k, 0, T, decay), v = heads_first(in.v, 0, T, decay);
  const auto weight = weight_in_final_state(in);
  const bool derivative = out.grad_log_decay.defined();
  const auto exponents = [&](int64_t first, int64_t n) {  // first .. first+n-1 as a column
    return at::arange(first, first + n, k.options()).unsqueeze(-1);
  };

  // First come the gradients through the final state, gamma^T S_0 + sum_j gamma^(T-1-j) k_j^T v_j.
  auto R = state_or_zeros(incoming.grad_final_state, in);
  auto grad_k = at::matmul(v, R.transpose(-1, -2)).mul_(weight);
  auto grad_v = at::matmul(k, R).mul_(weight);
  if (derivative && incoming.grad_final_state.defined()) {
    const auto age = exponents(0, T).flip(0);  // T-1-j
    out.grad_log_decay.add_(sum_per_head(grad_k * k * age));
    out.grad_log_decay.add_(sum_per_head(decayed_initial_state(in) * incoming.grad_final_state), T);
  }
  decay.decay_(R, T);

  // Then come those through the output, a block of rows at a time.
  if (!incoming.grad_out.defined() && out.grad_q.defined()) out.grad_q.zero_();
  const auto S0 = visible_initial_state(in);
  for_each_block(incoming.grad_out.defined() ? T : 0, [&](int64_t first, int64_t n) {
    const int64_t end = first + n;
    const auto q = heads_first(in.q, first, n, decay);
    const auto grad_out = heads_first(incoming.grad_out, first, n, decay);
    const auto past_k = k.narrow(2, 0, end), past_v = v.narrow(2, 0, end);
    const auto D = decay.matrix(n, end, first).mul_(in.scale);
    const auto scores = at::matmul(q, past_k.transpose(-1, -2)).mul_(D);
    auto grad_scores = at::matmul(grad_out, past_v.transpose(-1, -2));
    if (derivative) {
      const auto distance = exponents(first, n) - exponents(0, end).transpose(-1, -2);
      out.grad_log_decay.add_(sum_per_head(scores * grad_scores * distance));
    }
    grad_scores.mul_(D);
    grad_v.narrow(2, 0, end).add_(at::matmul(scores.transpose(-1, -2), grad_out));
    grad_k.narrow(2, 0, end).add_(at::matmul(grad_scores.transpose(-1, -2), q));

    const auto row_weight = weight_of_initial_state(in, first, n);
    auto grad_q = at::matmul(grad_scores, past_k);
    if (in.initial_state.defined()) {
      const auto through_state = at::matmul(grad_out, S0.transpose(-1, -2)).mul_(row_weight);
      grad_q.add_(through_state);
      if (derivative) {
        out.grad_log_decay.add_(sum_per_head(through_state * q * exponents(first + 1, n)));
      }
      R.add_(at::matmul((q * row_weight).transpose(-1, -2), grad_out));
    }
    if (out.grad_q.defined()) store_heads_first(out.grad_q, first, grad_q);
  });
  decay.zero_where_gamma_is_zero_(R);

  if (out.grad_k.defined()) store_heads_first(out.grad_k, 0, grad_k);
  if (out.grad_v.defined()) store_heads_first(out.grad_v, 0, grad_v);
  if (out.grad_initial_state.defined()) out.grad_initial_state.copy_(R);
}

}  // namespace retnet::ops::composite
