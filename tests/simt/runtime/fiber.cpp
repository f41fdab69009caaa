// SPDX-License-Identifier: Apache-2.0
#include "simt/runtime/fiber.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__) || !defined(__GNUC__)
#error "the emulator's fibers are written for x86-64 and the System V calling convention"
#endif

// The callee-saved registers are all that a call may not change; the caller saved the rest.
asm(R"(
.text
.globl retnet_simt_switch
.type retnet_simt_switch, @function
retnet_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size retnet_simt_switch, . - retnet_simt_switch
)");

namespace retnet::simt {

Stacks::~Stacks() { release(); }

void Stacks::release() {
  if (start_ != 0) munmap(reinterpret_cast<void*>(start_), pitch_ * count_);
  start_ = 0;
  count_ = 0;
}

void Stacks::reserve(int count, size_t bytes) {
  const size_t pitch = (bytes + kGuard - 1) / kGuard * kGuard + kGuard;
  if (count <= count_ && pitch == pitch_) return;
  release();
  void* memory = mmap(nullptr, pitch * count, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("simt: cannot map the threads' stacks");
    std::abort();
  }
  start_ = reinterpret_cast<uintptr_t>(memory);
  pitch_ = pitch;
  count_ = count;
  for (int i = 0; i < count; ++i) {
    mprotect(reinterpret_cast<void*>(start_ + i * pitch_), kGuard, PROT_NONE);
  }
}

void* Stacks::prepare(int index, void (*entry)()) const {
  auto* top = reinterpret_cast<uint64_t*>(bottom(index) + bytes());
  // At entry, as after a call, the stack pointer must be 8 modulo 16; the word above it is the
  // return address, null to end backtraces.
  *--top = 0;
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int i = 0; i < 6; ++i) *--top = 0;
  return top;
}

}  // namespace retnet::simt
