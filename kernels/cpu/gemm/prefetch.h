// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "kernels/cpu/gemm/packing.h"

namespace retnet::kernels::cpu {
namespace {

/// Prefetches the tokens of the next chunk, some lines at a time, while the present chunk is
/// computed. Without it, packing would wait for memory. It goes down a column of lines before it
/// moves to the next one. Each row lies in a page of its own, and the addresses of these pages are
/// then translated side by side.
class Prefetcher {
 public:
  /// Starts again. `num_fetches` calls of `fetch` prefetch what is added from now on.
  void start(int64_t num_fetches) {
    count_ = part_ = 0;
    lines_ = row_ = column_ = 0;
    num_fetches_ = num_fetches;
  }
  template <class Scalar>
  void add(const OperandView<Scalar>& x) {
    if (x.ptr == nullptr || x.rows <= 0) return;
    const int64_t bytes = x.columns * int64_t{sizeof(Scalar)};
    parts_[count_++] = {reinterpret_cast<const char*>(x.ptr), x.stride * int64_t{sizeof(Scalar)},
                        x.rows, bytes};
    lines_ += x.rows * ((bytes + 63) / 64);
    at_once_ = (lines_ + num_fetches_ - 1) / num_fetches_;
  }
  RETNET_INLINE void fetch() {
    for (int64_t i = 0; i < at_once_ && part_ < count_; ++i) {
      const auto& x = parts_[part_];
      __builtin_prefetch(x.ptr + row_ * x.stride + column_, 0, 2);  // into the L2 cache
      if (++row_ < x.rows) continue;
      row_ = 0;
      if ((column_ += 64) < x.bytes) continue;
      column_ = 0;
      ++part_;
    }
  }

 private:
  struct Part {
    const char* ptr;
    int64_t stride, rows, bytes;
  } parts_[4];
  int count_ = 0, part_ = 0;
  int64_t lines_ = 0, row_ = 0, column_ = 0, num_fetches_ = 0, at_once_ = 0;
};

}  // namespace
}  // namespace retnet::kernels::cpu
