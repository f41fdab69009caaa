// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace retnet::kernels::cpu {

/// An element of a 16-bit tensor, held as its bits.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

}  // namespace retnet::kernels::cpu
