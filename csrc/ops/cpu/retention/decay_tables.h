// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/cpu/retention/params.h"

namespace retnet::ops::cpu {

/// The powers of gamma of every head, and the memory they lie in. Powers are computed in float64
/// and rounded once.
class HeadDecayTables {
 public:
  HeadDecayTables(const at::Tensor& log_decay, double scale);
  const retnet::kernels::cpu::DecayTables& operator[](int64_t head) const { return tables_[head]; }

 private:
  std::vector<float> memory_;
  std::vector<retnet::kernels::cpu::DecayTables> tables_;
};

}  // namespace retnet::ops::cpu
