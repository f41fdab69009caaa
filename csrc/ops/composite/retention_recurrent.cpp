// SPDX-License-Identifier: Apache-2.0
//
// The recurrent form (Eq. 6) goes token by token. It keeps a state of O(Dk Dv) and nothing else.
#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>

#include "ops/composite/retention.h"

namespace retnet::ops::composite {
namespace {

/// Returns token t of x [B, T, H, D] as a row vector [B, H, 1, D] of the dtype of the decay.
at::Tensor row(const at::Tensor& x, int64_t t, const Decay& decay) {
  return heads_first(x, t, 1, decay);
}

/// Returns token t of x as a column vector [B, H, D, 1].
at::Tensor column(const at::Tensor& x, int64_t t, const Decay& decay) {
  return row(x, t, decay).transpose(-1, -2);
}

}  // namespace

void recurrent_forward(const Inputs& in, const Outputs& out) {
  auto S = state_or_zeros(in.initial_state, in);
  for (int64_t t = 0; t < in.num_tokens(); ++t) {
    in.decay.decay_(S, 1);
    S.addcmul_(column(in.k, t, in.decay), row(in.v, t, in.decay));
    store_heads_first(out.out, t, at::matmul(row(in.q, t, in.decay), S).mul_(in.scale));
  }
  out.final_state.copy_(S);
}

namespace {

/// Goes forward in time, with the state S and, for the gradient of log_decay, its derivative S'.
void recurrent_backward_of_q_and_log_decay(const Inputs& in, const OutputGrads& incoming,
                                           const InputGrads& out) {
  const auto& decay = in.decay;
  const bool derivative = out.grad_log_decay.defined();
  auto S = state_or_zeros(in.initial_state, in);
  auto state_derivative = derivative ? state_or_zeros({}, in) : at::Tensor();
  for (int64_t t = 0; t < in.num_tokens(); ++t) {
    if (derivative) {
      state_derivative.add_(S);
      decay.decay_(state_derivative, 1);
    }
    decay.decay_(S, 1);
    S.addcmul_(column(in.k, t, decay), row(in.v, t, decay));
    if (!incoming.grad_out.defined()) continue;
    const auto grad_out = column(incoming.grad_out, t, decay);
    if (out.grad_q.defined()) {
      store_heads_first(out.grad_q, t, at::matmul(S, grad_out).mul_(in.scale).transpose(-1, -2));
    }
    if (derivative) {
      const auto product = column(in.q, t, decay) * at::matmul(state_derivative, grad_out);
      out.grad_log_decay.add_(sum_per_head(product), in.scale);
    }
  }
  if (derivative && incoming.grad_final_state.defined()) {
    out.grad_log_decay.add_(sum_per_head(state_derivative * incoming.grad_final_state));
  }
  if (out.grad_q.defined() && !incoming.grad_out.defined()) out.grad_q.zero_();
}

/// Goes backward in time, with R, the gradient of the state.
void recurrent_backward_of_k_v_and_state(const Inputs& in, const OutputGrads& incoming,
                                         const InputGrads& out) {
  const auto& decay = in.decay;
  auto R = state_or_zeros(incoming.grad_final_state, in);
  for (int64_t t = in.num_tokens() - 1; t >= 0; --t) {
    if (incoming.grad_out.defined()) {
      R.addcmul_(column(in.q, t, decay), row(incoming.grad_out, t, decay), in.scale);
    }
    if (out.grad_k.defined()) {
      const auto grad_k = at::matmul(R, column(in.v, t, decay));
      store_heads_first(out.grad_k, t, grad_k.transpose(-1, -2));
    }
    if (out.grad_v.defined()) store_heads_first(out.grad_v, t, at::matmul(row(in.k, t, decay), R));
    decay.decay_(R, 1);
  }
  if (out.grad_initial_state.defined()) out.grad_initial_state.copy_(R);
}

}  // namespace

void recurrent_backward(const Inputs& in, const OutputGrads& incoming, const InputGrads& out) {
  if (out.grad_q.defined() || out.grad_log_decay.defined())
    recurrent_backward_of_q_and_log_decay(in, incoming, out);
  if (out.grad_k.defined() || out.grad_v.defined() || out.grad_initial_state.defined()) {
    recurrent_backward_of_k_v_and_state(in, incoming, out);
  }
}

}  // namespace retnet::ops::composite
