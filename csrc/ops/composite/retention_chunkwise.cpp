// SPDX-License-Identifier: Apache-2.0
//
// The chunkwise form (Eq. 7) works like the parallel form inside a chunk and like the recurrent
// form across chunks. A group of chunks goes through batched matrix products together. The groups
// follow one another, so that the memory beyond inputs and outputs does not depend on T. With L the
// length of a chunk, i and j positions in it and S the state at its start:
//
//     out_i = scale sum_{j <= i} gamma^(i-j) (q_i . k_j) v_j + scale gamma^(i+1) q_i S
//     S    <- gamma^L S + sum_j gamma^(L-1-j) k_j^T v_j
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <vector>

#include "ops/composite/retention.h"

namespace retnet::ops::composite {
namespace {

/// The working set of a group of chunks, in elements. It is small enough for a cache and large
/// enough for batched products.
constexpr int64_t kGroupElements = int64_t{1} << 20;

/// Consecutive chunks of one length.
struct Group {
  int64_t first_token, num_chunks, chunk_size;
  int64_t num_tokens() const { return num_chunks * chunk_size; }
};

/// Splits all tokens into groups of whole chunks. If the last chunk is shorter, it is a group of
/// its own.
std::vector<Group> split_into_groups(const Inputs& in) {
  const int64_t T = in.num_tokens(), C = in.chunk_size, Dk = in.q.size(3), Dv = in.v.size(3);
  const int64_t elements = in.q.size(0) * in.q.size(2) * (Dk * Dv + C * (2 * Dk + 2 * Dv + C));
  const int64_t at_once = std::max<int64_t>(1, kGroupElements / elements);
  std::vector<Group> groups;
  for (int64_t first = 0; first < T;) {
    const int64_t whole = (T - first) / C;
    groups.push_back(whole > 0 ? Group{first, std::min(whole, at_once), C}
                               : Group{first, 1, T - first});
    first += groups.back().num_tokens();
  }
  return groups;
}

/// The powers of gamma that a chunk of length L needs, shaped to multiply [B, H, chunks, L, ...].
struct ChunkDecay {
  ChunkDecay(const Decay& decay, double scale, int64_t L)
      : length(L),
        D(decay.matrix(L, L).mul_(scale).unsqueeze(1)),
        state_weight(decay.powers(L, 1).mul_(scale).view({-1, 1, L, 1})),
        token_weight(decay.powers(L).flip(-1).view({-1, 1, L, 1})),
        position(at::arange(L, D.options()).unsqueeze(-1)) {}

  int64_t length;
  at::Tensor D;             // [H, 1, L, L]  scale gamma^(i-j), 0 above the diagonal
  at::Tensor state_weight;  // [H, 1, L, 1]  scale gamma^(i+1), the weight of S in out_i
  at::Tensor token_weight;  // [H, 1, L, 1]  gamma^(L-1-j), the weight of token j in the next state
  at::Tensor position;      // [L, 1]        i
};

/// The tables for the chunk length of the current group. They are computed for the first group, and
/// once more for the next length if the last chunk of the sequence is shorter.
class ChunkDecays {
 public:
  explicit ChunkDecays(const Inputs& in) : in_(in) {}
  const ChunkDecay& of(const Group& group) {
    if (!current_ || current_->length != group.chunk_size) {
      current_.emplace(in_.decay, in_.scale, group.chunk_size);
    }
    return *current_;
  }

 private:
  const Inputs& in_;
  std::optional<ChunkDecay> current_;
};

/// Returns the tokens of a group, [B, H, chunks, L, D].
at::Tensor load_chunks(const at::Tensor& x, const Group& group, const Decay& decay) {
  if (!x.defined()) return x;
  return heads_first(x, group.first_token, group.num_tokens(), decay)
      .unflatten(2, {group.num_chunks, group.chunk_size});
}

void store_chunks(const at::Tensor& target, const Group& group, const at::Tensor& x) {
  store_heads_first(target, group.first_token, x.flatten(2, 3));
}

at::Tensor transposed(const at::Tensor& x) { return x.transpose(-1, -2); }

/// Replaces x[..., c, :, :] of each chunk c by the state at the start of the chunk. `state` becomes
/// the state after the group, by state <- gamma^L state + x_c for each chunk. If `reverse`, the
/// last chunk comes first.
void scan_(at::Tensor& x, at::Tensor& state, const Decay& decay, int64_t L, bool reverse = false) {
  const int64_t num_chunks = x.size(2);
  for (int64_t n = 0; n < num_chunks; ++n) {
    auto slot = x.select(2, reverse ? num_chunks - 1 - n : n);
    auto next = state.clone();
    decay.decay_(next, L);
    next.add_(slot);
    slot.copy_(state);
    state = next;
  }
}

}  // namespace

void chunkwise_forward(const Inputs& in, const Outputs& out) {
  const auto& decay = in.decay;
  auto S = state_or_zeros(in.initial_state, in);
  decay.zero_where_gamma_is_zero_(S);
  ChunkDecays tables(in);
  for (const auto& group : split_into_groups(in)) {
    const auto& table = tables.of(group);
    const auto q = load_chunks(in.q, group, decay), k = load_chunks(in.k, group, decay),
               v = load_chunks(in.v, group, decay);
    auto states = at::matmul(transposed(k * table.token_weight), v);
    scan_(states, S, decay, group.chunk_size);
    auto o = at::matmul(at::matmul(q, transposed(k)).mul_(table.D), v);
    o.add_(at::matmul(q * table.state_weight, states));
    store_chunks(out.out, group, o);
  }
  out.final_state.copy_(S);
}

namespace {

/// Computes grad_q and grad_log_decay forward in time, with the state and its derivative in
/// log_decay,
///     S' <- gamma^L (S' + L S) + sum_j (L-1-j) gamma^(L-1-j) k_j^T v_j.
void backward_of_q_and_log_decay(const Inputs& in, const OutputGrads& incoming,
                                 const InputGrads& out) {
  const auto& decay = in.decay;
  const bool derivative = out.grad_log_decay.defined();
  auto S = state_or_zeros(in.initial_state, in);
  decay.zero_where_gamma_is_zero_(S);
  auto state_derivative = derivative ? at::zeros_like(S) : at::Tensor();
  ChunkDecays tables(in);
  for (const auto& group : split_into_groups(in)) {
    const auto& table = tables.of(group);
    const int64_t L = group.chunk_size;
    const auto k = load_chunks(in.k, group, decay), v = load_chunks(in.v, group, decay);
    auto states = at::matmul(transposed(k * table.token_weight), v);
    scan_(states, S, decay, L);
    at::Tensor state_derivatives;
    if (derivative) {
      const auto age = table.position.flip(0);  // L-1-j
      state_derivatives = at::matmul(transposed(k * (table.token_weight * age)), v);
      state_derivatives.add_(states * (decay.powers(1, L) * L).view({-1, 1, 1, 1}));
      scan_(state_derivatives, state_derivative, decay, L);
    }
    if (!incoming.grad_out.defined()) continue;
    const auto grad_out = load_chunks(incoming.grad_out, group, decay);
    const auto grad_scores = at::matmul(grad_out, transposed(v)).mul_(table.D);
    const auto through_state = at::matmul(grad_out * table.state_weight, transposed(states));
    if (derivative) {
      const auto q = load_chunks(in.q, group, decay);
      const auto distance = table.position - transposed(table.position);
      const auto within_chunk = at::matmul(q, transposed(k)).mul_(grad_scores).mul_(distance);
      const auto across_chunks =
          (through_state * (table.position + 1))
              .add_(at::matmul(grad_out * table.state_weight, transposed(state_derivatives)))
              .mul_(q);
      out.grad_log_decay.add_(sum_per_head(within_chunk)).add_(sum_per_head(across_chunks));
    }
    if (out.grad_q.defined()) {
      store_chunks(out.grad_q, group, at::matmul(grad_scores, k).add_(through_state));
    }
  }
  if (derivative && incoming.grad_final_state.defined()) {
    out.grad_log_decay.add_(sum_per_head(state_derivative * incoming.grad_final_state));
  }
  if (out.grad_q.defined() && !incoming.grad_out.defined()) out.grad_q.zero_();
}

/// Computes grad_k, grad_v and grad_initial_state backward in time. R is the gradient of the state
/// at the end of a chunk, undecayed, as its last token sees it. It is grad_final_state for the last
/// chunk, and before a chunk
///     R <- gamma^L R + sum_i scale gamma^(i+1) q_i^T grad_out_i.
void backward_of_k_v_and_state(const Inputs& in, const OutputGrads& incoming,
                               const InputGrads& out) {
  const auto& decay = in.decay;
  auto R = state_or_zeros(incoming.grad_final_state, in);
  ChunkDecays tables(in);
  auto groups = split_into_groups(in);
  std::reverse(groups.begin(), groups.end());
  for (const auto& group : groups) {
    const auto& table = tables.of(group);
    const auto q = load_chunks(in.q, group, decay), k = load_chunks(in.k, group, decay),
               v = load_chunks(in.v, group, decay),
               grad_out = load_chunks(incoming.grad_out, group, decay);
    at::Tensor R_at_end =
        grad_out.defined()
            ? at::matmul(transposed(q * table.state_weight), grad_out)
            : at::zeros({q.size(0), q.size(1), q.size(2), q.size(4), v.size(4)}, q.options());
    scan_(R_at_end, R, decay, group.chunk_size, /*reverse=*/true);
    if (out.grad_k.defined()) {
      auto grad_k = at::matmul(v * table.token_weight, transposed(R_at_end));
      if (grad_out.defined()) {
        const auto grad_scores = at::matmul(grad_out, transposed(v)).mul_(table.D);
        grad_k.add_(at::matmul(transposed(grad_scores), q));
      }
      store_chunks(out.grad_k, group, grad_k);
    }
    if (out.grad_v.defined()) {
      auto grad_v = at::matmul(k * table.token_weight, R_at_end);
      if (grad_out.defined()) {
        const auto scores = at::matmul(q, transposed(k)).mul_(table.D);
        grad_v.add_(at::matmul(transposed(scores), grad_out));
      }
      store_chunks(out.grad_v, group, grad_v);
    }
  }
  if (out.grad_initial_state.defined()) out.grad_initial_state.copy_(R);
}

}  // namespace

void chunkwise_backward(const Inputs& in, const OutputGrads& incoming, const InputGrads& out) {
  if (out.grad_q.defined() || out.grad_log_decay.defined())
    backward_of_q_and_log_decay(in, incoming, out);
  if (out.grad_k.defined() || out.grad_v.defined() || out.grad_initial_state.defined()) {
    backward_of_k_v_and_state(in, incoming, out);
  }
}

}  // namespace retnet::ops::composite
