// SPDX-License-Identifier: Apache-2.0
#include "ops/composite/retention.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/check.h"
#include "ops/composite/batch_invariance.h"
#include "ops/retention.h"

namespace retnet::ops {
namespace composite {

at::Tensor heads_first(const at::Tensor& x, int64_t first, int64_t n, const Decay& decay) {
  if (!x.defined()) return x;
  // If batch invariance is required, contiguous tensors are copied too, because alignment chooses
  // code.
  return x.narrow(1, first, n)
      .transpose(1, 2)
      .to(decay.dtype(), /*non_blocking=*/false, /*copy=*/batch_invariance_required(),
          at::MemoryFormat::Contiguous)
      .contiguous();
}

void store_heads_first(const at::Tensor& target, int64_t first, const at::Tensor& x) {
  target.narrow(1, first, x.size(2)).copy_(x.transpose(1, 2));
}

at::Tensor state_or_zeros(const at::Tensor& state, const Inputs& in) {
  if (state.defined()) return state.clone(at::MemoryFormat::Contiguous);
  return at::zeros({in.q.size(0), in.q.size(2), in.q.size(3), in.v.size(3)},
                   in.q.options().dtype(in.decay.dtype()));
}

at::Tensor sum_per_head(const at::Tensor& x) {
  return x.transpose(0, 1).flatten(1).sum(-1, /*keepdim=*/false, at::kDouble);
}

at::Tensor packed_bounds(const char* op, const at::Tensor& q, const at::Tensor& cu_seqlens) {
  const auto bounds = cu_seqlens.cpu().contiguous();
  const int32_t* bound = bounds.const_data_ptr<int32_t>();
  const int64_t T = q.size(1), N = bounds.numel() - 1;
  TORCH_CHECK(bound[0] == 0, op, ": cu_seqlens must start at 0, got ", bound[0]);
  TORCH_CHECK(bound[N] == T, op, ": cu_seqlens must end at T = ", T, ", got ", bound[N]);
  for (int64_t n = 0; n < N; ++n) {
    TORCH_CHECK(bound[n] <= bound[n + 1], op, ": cu_seqlens must be non-decreasing, got ", bound[n],
                " before ", bound[n + 1], " at index ", n + 1);
  }
  return bounds;
}

}  // namespace composite

namespace {

using composite::InputGrads;
using composite::Inputs;
using composite::OutputGrads;
using composite::Outputs;

/// The default is a compromise. The work inside a chunk grows with its size, but batched matrix
/// products reach their speed only above some size.
constexpr int64_t kDefaultChunkSize = 64;

/// Tokens of consecutive sequences of equal length: entries of the batch, or one packed sequence.
struct Span {
  int64_t sequence;     // the first one, as an index into the states
  int64_t batch_entry;  // that of the first sequence
  int64_t num_sequences;
  int64_t first_token, num_tokens;
};

/// One span for each packed sequence. Without packed sequences, one span for the whole batch, or one
/// for each batch entry if batch invariance is required. Reads cu_seqlens on the host.
std::vector<Span> split_into_spans(const char* op, const at::Tensor& q,
                                   const std::optional<at::Tensor>& cu_seqlens) {
  const int64_t T = q.size(1);
  if (!cu_seqlens) {
    const int64_t at_once = composite::batch_invariance_required() ? 1 : q.size(0);
    std::vector<Span> spans;
    for (int64_t b = 0; b < q.size(0); b += at_once) spans.push_back({b, b, at_once, 0, T});
    return spans;
  }
  const auto bounds = composite::packed_bounds(op, q, *cu_seqlens);
  const int32_t* bound = bounds.const_data_ptr<int32_t>();
  std::vector<Span> spans;
  for (int64_t n = 0; n + 1 < bounds.numel(); ++n) {
    spans.push_back({n, 0, 1, bound[n], bound[n + 1] - bound[n]});
  }
  return spans;
}

at::Tensor span_states(const std::optional<at::Tensor>& state, const Span& span) {
  return state && state->defined() ? state->narrow(0, span.sequence, span.num_sequences)
                                   : at::Tensor();
}

at::Tensor span_tokens(const std::optional<at::Tensor>& x, const Span& span) {
  return x && x->defined() ? x->narrow(0, span.batch_entry, span.num_sequences)
                                 .narrow(1, span.first_token, span.num_tokens)
                           : at::Tensor();
}

double scale_or_default(std::optional<double> scale, const at::Tensor& q) {
  return scale ? *scale : 1.0 / std::sqrt(static_cast<double>(q.size(3)));
}

Inputs make_inputs(const Span& span, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                   const std::optional<at::Tensor>& initial_state, const Decay& decay,
                   std::optional<double> scale, std::optional<int64_t> chunk_size) {
  return {span_tokens(q, span),
          span_tokens(k, span),
          span_tokens(v, span),
          span_states(initial_state, span),
          decay,
          scale_or_default(scale, q),
          std::min(chunk_size.value_or(kDefaultChunkSize), span.num_tokens)};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> composite::retention(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state, std::optional<double> scale,
    std::string_view form, std::optional<int64_t> chunk_size,
    const std::optional<at::Tensor>& cu_seqlens) {
  check_retention("retention", q, k, v, log_decay, initial_state, form, chunk_size, cu_seqlens);
  const auto spans = split_into_spans("retention", q, cu_seqlens);
  const int64_t N = cu_seqlens ? cu_seqlens->size(0) - 1 : q.size(0);
  auto out = at::empty(v.sizes(), q.options());
  auto final_state = at::empty({N, q.size(2), q.size(3), v.size(3)}, log_decay.options());
  if (final_state.numel() == 0) return {out, final_state};
  const auto forward = form == "chunkwise"  ? composite::chunkwise_forward
                       : form == "parallel" ? composite::parallel_forward
                                            : composite::recurrent_forward;
  const Decay decay(log_decay);
  for (const auto& span : spans) {
    const auto in = make_inputs(span, q, k, v, initial_state, decay, scale, chunk_size);
    if (span.num_tokens == 0) {
      span_states(final_state, span).copy_(composite::state_or_zeros(in.initial_state, in));
    } else {
      forward(in, {span_tokens(out, span), span_states(final_state, span)});
    }
  }
  return {out, final_state};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
composite::retention_backward(
    const std::optional<at::Tensor>& grad_out, const std::optional<at::Tensor>& grad_final_state,
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state, std::optional<double> scale,
    std::string_view form, std::optional<int64_t> chunk_size,
    const std::optional<at::Tensor>& cu_seqlens, std::array<bool, 5> output_mask) {
  check_retention("retention_backward", q, k, v, log_decay, initial_state, form, chunk_size,
                  cu_seqlens);
  check_retention_grads(grad_out, grad_final_state, q, k, v, log_decay, cu_seqlens);
  const auto spans = split_into_spans("retention_backward", q, cu_seqlens);
  const auto like = [](bool needed, const at::Tensor& x) {
    return needed ? at::empty(x.sizes(), x.options()) : at::Tensor();
  };
  const InputGrads grads{like(output_mask[0], q), like(output_mask[1], k), like(output_mask[2], v),
                         output_mask[3] ? at::zeros_like(log_decay, at::kDouble) : at::Tensor(),
                         initial_state ? like(output_mask[4], *initial_state) : at::Tensor()};
  const auto backward = form == "chunkwise"  ? composite::chunkwise_backward
                        : form == "parallel" ? composite::parallel_backward
                                             : composite::recurrent_backward;
  const Decay decay(log_decay);
  const bool any_element = q.size(2) > 0 && q.size(0) > 0;
  for (const auto& span : spans) {
    if (!any_element) break;
    const OutputGrads incoming{span_tokens(grad_out, span), span_states(grad_final_state, span)};
    const InputGrads target{span_tokens(grads.grad_q, span), span_tokens(grads.grad_k, span),
                            span_tokens(grads.grad_v, span), grads.grad_log_decay,
                            span_states(grads.grad_initial_state, span)};
    if (span.num_tokens > 0 &&
        (incoming.grad_out.defined() || incoming.grad_final_state.defined())) {
      backward(make_inputs(span, q, k, v, initial_state, decay, scale, chunk_size), incoming,
               target);
      continue;
    }
    for (const auto& x : {target.grad_q, target.grad_k, target.grad_v, target.grad_initial_state}) {
      if (x.defined()) x.zero_();
    }
    // If there is no token, the final state is a copy of the initial one.
    if (target.grad_initial_state.defined() && incoming.grad_final_state.defined()) {
      target.grad_initial_state.copy_(incoming.grad_final_state);
    }
  }
  at::Tensor grad_log_decay;
  if (grads.grad_log_decay.defined()) {
    grad_log_decay =
        grads.grad_log_decay.masked_fill(decay.gamma_is_zero(), 0.0).to(log_decay.scalar_type());
  }
  return {grads.grad_q, grads.grad_k, grads.grad_v, grad_log_decay, grads.grad_initial_state};
}

TORCH_LIBRARY_IMPL(retnet, CompositeExplicitAutograd, m) {
  m.impl("retention", composite::retention);
  m.impl("retention_backward", composite::retention_backward);
}

}  // namespace retnet::ops
