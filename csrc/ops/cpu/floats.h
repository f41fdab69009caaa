// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace retnet::ops::cpu {

/// A tensor as contiguous floats: itself where it is that already.
class Floats {
 public:
  explicit Floats(const at::Tensor& x)
      : x_(x.to(at::kFloat, /*non_blocking=*/false, /*copy=*/false, at::MemoryFormat::Contiguous)
               .contiguous()) {}
  const float* row(int64_t row, int64_t columns) const {
    return x_.const_data_ptr<float>() + row * columns;
  }

 private:
  at::Tensor x_;
};

}  // namespace retnet::ops::cpu
