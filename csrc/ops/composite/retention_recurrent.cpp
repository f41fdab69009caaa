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
void recurrent_backward_of_q_and_log_decay(const Inputs& in, const OutputGrads& grad,
                                           const InputGrads& out) {
  const auto& decay = in.decay;
  const bool derivative = out.log_decay.defined();
  auto S = state_or_zeros(in.initial_state, in);
  auto state_derivative = derivative ? state_or_zeros({}, in) : at::Tensor();
  for (int64_t t = 0; t < in.num_tokens(); ++t) {
    if (derivative) {
      state_derivative.add_(S);
      decay.decay_(state_derivative, 1);
    }
    decay.decay_(S, 1);
    S.addcmul_(column(in.k, t, decay), row(in.v, t, decay));
    if (!grad.out.defined()) continue;
    const auto grad_out = column(grad.out, t, decay);
    if (out.q.defined()) {
      store_heads_first(out.q, t, at::matmul(S, grad_out).mul_(in.scale).transpose(-1, -2));
    }
    if (derivative) {
      const auto product = column(in.q, t, decay) * at::matmul(state_derivative, grad_out);
      out.log_decay.add_(sum_per_head(product), in.scale);
    }
  }
  if (derivative && grad.final_state.defined()) {
    out.log_decay.add_(sum_per_head(state_derivative * grad.final_state));
  }
  if (out.q.defined() && !grad.out.defined()) out.q.zero_();
}

/// Goes backward in time, with the gradient of the state.
void recurrent_backward_of_k_v_and_state(const Inputs& in, const OutputGrads& grad,
                                         const InputGrads& out) {
  const auto& decay = in.decay;
  auto grad_state = state_or_zeros(grad.final_state, in);
  for (int64_t t = in.num_tokens() - 1; t >= 0; --t) {
    if (grad.out.defined()) {
      grad_state.addcmul_(column(in.q, t, decay), row(grad.out, t, decay), in.scale);
    }
    if (out.k.defined()) {
      const auto grad_k = at::matmul(grad_state, column(in.v, t, decay));
      store_heads_first(out.k, t, grad_k.transpose(-1, -2));
    }
    if (out.v.defined()) store_heads_first(out.v, t, at::matmul(row(in.k, t, decay), grad_state));
    decay.decay_(grad_state, 1);
  }
  if (out.initial_state.defined()) out.initial_state.copy_(grad_state);
}

}  // namespace

void recurrent_backward(const Inputs& in, const OutputGrads& grad, const InputGrads& out) {
  if (out.q.defined() || out.log_decay.defined())
    recurrent_backward_of_q_and_log_decay(in, grad, out);
  if (out.k.defined() || out.v.defined() || out.initial_state.defined()) {
    recurrent_backward_of_k_v_and_state(in, grad, out);
  }
}

}  // namespace retnet::ops::composite
