// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace retnet::kernels::cpu {
namespace {

/// Cuts the memory that a kernel works in into aligned arrays. A workspace that begins at null
/// counts their bytes only.
class Workspace {
 public:
  explicit Workspace(void* begin) : begin_(reinterpret_cast<uintptr_t>(begin)), at_(begin_) {}
  template <class T>
  T* take(int64_t n) {
    at_ = (at_ + 63) / 64 * 64;
    auto* p = reinterpret_cast<T*>(at_);
    at_ += n * sizeof(T);
    return p;
  }
  size_t bytes() const { return at_ - begin_ + 64; }

 private:
  uintptr_t begin_, at_;
};

}  // namespace
}  // namespace retnet::kernels::cpu
