// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/Context.h>

namespace retnet::ops::composite {

/// Whether a row of the batch must have the same bits whatever else the batch holds, which is
/// promised under torch.use_deterministic_algorithms(True). Batched matrix products and vectorised
/// functions choose their code by the size of the whole, so rows are then computed one by one.
inline bool rows_apart() {
  const auto& context = at::globalContext();
  return context.deterministicAlgorithms() && !context.deterministicAlgorithmsWarnOnly();
}

}  // namespace retnet::ops::composite
