// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <sys/mman.h>

#include <cstdint>

namespace retnet::ops::cpu {

/// Returns an uninitialised tensor. If it is large, the system is advised to back it by huge pages,
/// because page faults take a large part of the time of a fast forward pass.
inline at::Tensor empty_output(at::IntArrayRef sizes, const at::TensorOptions& options) {
  constexpr uintptr_t kPage = uintptr_t{1} << 21, kLarge = uintptr_t{4} << 20;
  auto x = at::empty(sizes, options);
  if (x.nbytes() >= kLarge) {
    const auto begin = reinterpret_cast<uintptr_t>(x.data_ptr());
    const auto first = (begin + kPage - 1) / kPage * kPage,
               last = (begin + x.nbytes()) / kPage * kPage;
    // If the system does not take this advice, nothing is lost.
    if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
  return x;
}

}  // namespace retnet::ops::cpu
