// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace retnet::kernels::cpu {

/// Elements of tensors of 16 bits: their bits alone.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

}  // namespace retnet::kernels::cpu
