// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

// Saves the callee-saved registers and the stack pointer of the caller in *from, and continues
// where `to` was saved.
extern "C" void retnet_simt_switch(void** from, void* to);

namespace retnet::simt {

// Stacks of one size, each above a guard page. An overflow is therefore a fault and not silent
// corruption.
class Stacks {
 public:
  Stacks() = default;
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  void reserve(int count, size_t bytes);
  uintptr_t bottom(int index) const { return start_ + index * pitch_ + kGuard; }
  size_t bytes() const { return pitch_ - kGuard; }

  // A stack pointer from which retnet_simt_switch enters `entry`, which must not return.
  void* prepare(int index, void (*entry)()) const;

 private:
  static constexpr size_t kGuard = 4096;
  void release();

  uintptr_t start_ = 0;
  size_t pitch_ = kGuard;
  int count_ = 0;
};

}  // namespace retnet::simt
