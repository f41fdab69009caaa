// SPDX-License-Identifier: Apache-2.0
#include "ops/retention.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/check.h"
#include "ops/log_decay.h"

namespace retnet::ops {

// Checks
// -------------------------------------------------------------------------------------------------

namespace {

/// Returns the number of sequences: the size of the batch, or the number of packed sequences.
c10::SymInt num_sequences(const at::Tensor& q, const std::optional<at::Tensor>& cu_seqlens) {
  return cu_seqlens ? cu_seqlens->sym_size(0) - 1 : q.sym_size(0);
}

}  // namespace

void check_retention(const char* op, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& log_decay, const std::optional<at::Tensor>& initial_state,
                     std::string_view form, std::optional<int64_t> chunk_size,
                     const std::optional<at::Tensor>& cu_seqlens) {
  check_rank(op, "q", q, 4, "[B, T, H, Dk]");
  check_floating(op, "q", q);
  const auto B = q.sym_size(0), T = q.sym_size(1), H = q.sym_size(2), Dk = q.sym_size(3);
  TORCH_CHECK(Dk >= 1, op, ": q must have Dk >= 1, got ", q.sym_sizes());
  check_shape(op, "k", k, {B, T, H, Dk}, "[B, T, H, Dk]");
  check_rank(op, "v", v, 4, "[B, T, H, Dv]");
  const auto Dv = v.sym_size(3);
  check_shape(op, "v", v, {B, T, H, Dv}, "[B, T, H, Dv]");
  TORCH_CHECK(Dv >= 1, op, ": v must have Dv >= 1, got ", v.sym_sizes());
  check_dtype(op, "k", k, q.scalar_type(), "like q");
  check_dtype(op, "v", v, q.scalar_type(), "like q");
  check_device(op, "k", k, q, "q");
  check_device(op, "v", v, q, "q");
  check_log_decay(op, log_decay, q, H);
  if (cu_seqlens) {
    check_rank(op, "cu_seqlens", *cu_seqlens, 1, "[N + 1]");
    TORCH_CHECK(cu_seqlens->sym_size(0) >= 1, op, ": cu_seqlens must have at least one entry, got ",
                cu_seqlens->sym_sizes());
    check_dtype(op, "cu_seqlens", *cu_seqlens, at::kInt, "as in FlashAttention");
    check_device(op, "cu_seqlens", *cu_seqlens, q, "q");
    TORCH_CHECK(B == 1, op, ": q must have B = 1 when cu_seqlens is given, got ", q.sym_sizes());
  }
  if (initial_state) {
    check_shape(op, "initial_state", *initial_state, {num_sequences(q, cu_seqlens), H, Dk, Dv},
                "[N, H, Dk, Dv]");
    check_dtype(op, "initial_state", *initial_state, accumulate_dtype(q), "the state's dtype");
    check_device(op, "initial_state", *initial_state, q, "q");
  }
  TORCH_CHECK(form == "chunkwise" || form == "parallel" || form == "recurrent", op,
              ": form must be \"chunkwise\", \"parallel\" or \"recurrent\", got \"", form, "\"");
  TORCH_CHECK(!chunk_size || *chunk_size >= 1, op, ": chunk_size must be at least 1, got ",
              *chunk_size);
}

void check_retention_grads(const std::optional<at::Tensor>& grad_out,
                           const std::optional<at::Tensor>& grad_final_state, const at::Tensor& q,
                           const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
                           const std::optional<at::Tensor>& cu_seqlens) {
  constexpr auto op = "retention_backward";
  if (grad_out) {
    check_shape(op, "grad_out", *grad_out,
                {q.sym_size(0), q.sym_size(1), q.sym_size(2), v.sym_size(3)}, "[B, T, H, Dv]");
    check_dtype(op, "grad_out", *grad_out, q.scalar_type(), "like q");
    check_device(op, "grad_out", *grad_out, q, "q");
  }
  if (grad_final_state) {
    check_shape(op, "grad_state", *grad_final_state,
                {num_sequences(q, cu_seqlens), q.sym_size(2), k.sym_size(3), v.sym_size(3)},
                "[N, H, Dk, Dv]");
    check_dtype(op, "grad_state", *grad_final_state, log_decay.scalar_type(), "the state's dtype");
    check_device(op, "grad_state", *grad_final_state, q, "q");
  }
}

// Typed calls of the dispatcher
// -------------------------------------------------------------------------------------------------

std::tuple<at::Tensor, at::Tensor> retention(const at::Tensor& q, const at::Tensor& k,
                                             const at::Tensor& v, const at::Tensor& log_decay,
                                             const std::optional<at::Tensor>& initial_state,
                                             std::optional<double> scale, std::string_view form,
                                             std::optional<int64_t> chunk_size,
                                             const std::optional<at::Tensor>& cu_seqlens) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("retnet::retention", "")
                             .typed<decltype(retention)>();
  return op.call(q, k, v, log_decay, initial_state, scale, form, chunk_size, cu_seqlens);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> retention_backward(
    const std::optional<at::Tensor>& grad_out, const std::optional<at::Tensor>& grad_final_state,
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state, std::optional<double> scale,
    std::string_view form, std::optional<int64_t> chunk_size,
    const std::optional<at::Tensor>& cu_seqlens, std::array<bool, 5> output_mask) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("retnet::retention_backward", "")
                             .typed<decltype(retention_backward)>();
  return op.call(grad_out, grad_final_state, q, k, v, log_decay, initial_state, scale, form,
                 chunk_size, cu_seqlens, output_mask);
}

// Meta: shapes and dtypes alone
// -------------------------------------------------------------------------------------------------

namespace {

std::tuple<at::Tensor, at::Tensor> retention_meta(const at::Tensor& q, const at::Tensor& k,
                                                  const at::Tensor& v, const at::Tensor& log_decay,
                                                  const std::optional<at::Tensor>& initial_state,
                                                  std::optional<double> /*scale*/,
                                                  std::string_view form,
                                                  std::optional<int64_t> chunk_size,
                                                  const std::optional<at::Tensor>& cu_seqlens) {
  check_retention("retention", q, k, v, log_decay, initial_state, form, chunk_size, cu_seqlens);
  return {
      at::empty_symint(v.sym_sizes(), q.options()),
      at::empty_symint({num_sequences(q, cu_seqlens), q.sym_size(2), q.sym_size(3), v.sym_size(3)},
                       log_decay.options())};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> retention_backward_meta(
    const std::optional<at::Tensor>& grad_out, const std::optional<at::Tensor>& grad_final_state,
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state, std::optional<double> /*scale*/,
    std::string_view form, std::optional<int64_t> chunk_size,
    const std::optional<at::Tensor>& cu_seqlens, std::array<bool, 5> output_mask) {
  check_retention("retention_backward", q, k, v, log_decay, initial_state, form, chunk_size,
                  cu_seqlens);
  check_retention_grads(grad_out, grad_final_state, q, k, v, log_decay, cu_seqlens);
  const auto like = [&](bool needed, const at::Tensor& x) {
    return needed ? at::empty_symint(x.sym_sizes(), x.options()) : at::Tensor();
  };
  return {like(output_mask[0], q), like(output_mask[1], k), like(output_mask[2], v),
          like(output_mask[3], log_decay),
          initial_state ? like(output_mask[4], *initial_state) : at::Tensor()};
}

}  // namespace

// Schema
// -------------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(retnet, m) {
  m.def(
      "retention(Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor? initial_state=None, *, "
      "float? scale=None, str form=\"chunkwise\", int? chunk_size=None, Tensor? cu_seqlens=None) "
      "-> (Tensor out, Tensor final_state)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "retention_backward(Tensor? grad_out, Tensor? grad_state, Tensor q, Tensor k, Tensor v, "
      "Tensor log_decay, Tensor? initial_state, *, float? scale, str form, int? chunk_size, "
      "Tensor? cu_seqlens, bool[5] output_mask) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v, "
      "Tensor grad_log_decay, Tensor grad_initial_state)",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(retnet, Meta, m) {
  m.impl("retention", retention_meta);
  m.impl("retention_backward", retention_backward_meta);
}

}  // namespace retnet::ops
