// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>

#include <optional>
#include <utility>
#include <vector>

namespace retnet::ops::composite {

/// Whether the results of a batch entry must not depend on the rest of the batch, bit for bit. That
/// is promised under torch.use_deterministic_algorithms(True). Batched matrix products, sums and
/// vectorised functions choose their code by the size of the whole batch, so batch entries are then
/// computed one by one.
inline bool batch_invariance_required() {
  const auto& context = at::globalContext();
  return context.deterministicAlgorithms() && !context.deterministicAlgorithmsWarnOnly();
}

/// A copy of entry b of a batch, [1, ...]. It is a copy because strides and alignment choose code as
/// well.
inline at::Tensor batch_entry(const at::Tensor& x, int64_t b) {
  return x.narrow(0, b, 1).clone(at::MemoryFormat::Contiguous);
}
inline std::optional<at::Tensor> batch_entry(const std::optional<at::Tensor>& x, int64_t b) {
  return x ? std::optional(batch_entry(*x, b)) : std::nullopt;
}

/// Concatenates result_of(b), [1, ...], for the batch entries b = 0 .. B - 1, one after the other.
/// B >= 1.
template <typename ResultOf>
at::Tensor each_batch_entry(int64_t B, const ResultOf& result_of) {
  std::vector<at::Tensor> results;
  for (int64_t b = 0; b < B; ++b) results.push_back(result_of(b));
  return at::cat(results);
}

}  // namespace retnet::ops::composite
