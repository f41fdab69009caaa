// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace retnet::ops::cpu {

/// The weight or bias of a norm, [Dv] for all heads or [H, Dv], as dense floats.
class Affine {
 public:
  explicit Affine(const std::optional<at::Tensor>& x) {
    if (!x) return;
    floats_ =
        x->to(at::kFloat, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::Contiguous)
            .contiguous();
    per_head_ = x->dim() == 2;
  }
  /// The values for one head; null if x is absent.
  const float* of_head(int64_t head) const {
    if (!floats_.defined()) return nullptr;
    return floats_.const_data_ptr<float>() + (per_head_ ? head * floats_.size(1) : 0);
  }

 private:
  at::Tensor floats_;
  bool per_head_ = false;
};

}  // namespace retnet::ops::cpu
