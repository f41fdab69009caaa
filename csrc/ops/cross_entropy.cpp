// SPDX-License-Identifier: Apache-2.0
#include "ops/cross_entropy.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/check.h"

namespace retnet::ops {

// Checks
// -------------------------------------------------------------------------------------------------

void check_cross_entropy(const at::Tensor& logits, const at::Tensor& targets) {
  constexpr auto op = "cross_entropy_with_gradient_";
  check_rank(op, "logits", logits, 2, "[N, V]");
  TORCH_CHECK(logits.sym_size(1) >= 1, op, ": logits must have V >= 1, got ", logits.sym_sizes());
  check_floating(op, "logits", logits);
  check_shape(op, "targets", targets, {logits.sym_size(0)}, "[N]");
  check_dtype(op, "targets", targets, at::kLong, "classes");
  check_device(op, "targets", targets, logits, "logits");
}

void check_cross_entropy_memory(const at::Tensor& logits, const at::Tensor& targets,
                                int64_t ignore_index) {
  constexpr auto op = "cross_entropy_with_gradient_";
  const int64_t N = logits.size(0), V = logits.size(1);
  TORCH_CHECK((V == 1 || logits.stride(1) == 1) && (N <= 1 || logits.stride(0) >= V), op,
              ": logits must have dense rows that do not overlap, got shape ", logits.sizes(),
              " with strides ", logits.strides());
  if (!targets.device().is_cpu()) return;
  const auto values = targets.contiguous();
  const auto* target = values.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < N; ++n) {
    TORCH_CHECK_INDEX((target[n] >= 0 && target[n] < V) || target[n] == ignore_index, op,
                      ": targets must lie in [0, V) = [0, ", V,
                      ") or be ignore_index = ", ignore_index, ", got ", target[n], " in row ", n);
  }
}

// Typed call of the dispatcher
// -------------------------------------------------------------------------------------------------

at::Tensor cross_entropy_with_gradient_(const at::Tensor& logits, const at::Tensor& targets,
                                        int64_t ignore_index) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("retnet::cross_entropy_with_gradient_", "")
                             .typed<decltype(cross_entropy_with_gradient_)>();
  return op.call(logits, targets, ignore_index);
}

// Meta: shapes and dtypes alone
// -------------------------------------------------------------------------------------------------

namespace {

at::Tensor cross_entropy_meta(const at::Tensor& logits, const at::Tensor& targets,
                              int64_t /*ignore_index*/) {
  check_cross_entropy(logits, targets);
  return at::empty({}, logits.options().dtype(accumulate_dtype(logits)));
}

}  // namespace

// Schema
// -------------------------------------------------------------------------------------------------

TORCH_LIBRARY_FRAGMENT(retnet, m) {
  m.def(
      "cross_entropy_with_gradient_(Tensor(a!) logits, Tensor targets, *, int ignore_index=-100) "
      "-> Tensor loss",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(retnet, Meta, m) { m.impl("cross_entropy_with_gradient_", cross_entropy_meta); }

}  // namespace retnet::ops
