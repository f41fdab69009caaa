// SPDX-License-Identifier: Apache-2.0
//
// The functions that an instrumented kernel calls. With -fsanitize=thread, the compiler inserts a
// call before each load and store of memory. With -fsanitize=bounds,shift,..., it inserts one where
// the language forbids what the kernel does. The libraries of the sanitizers are not linked. Their
// interface is fixed and is defined here instead.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "simt/runtime/block.h"

namespace retnet::simt {
namespace {

void plain_access(const void* ptr, size_t bytes, bool is_write, bool aligned, const void* caller) {
  Lane* lane = running_lane;
  if (lane == nullptr) return;
  const auto address = reinterpret_cast<uintptr_t>(ptr);
  if (address - lane->stack < lane->block->launch().options.stack_bytes) return;
  const Runtime runtime;
  runtime.block.access(runtime.lane, address, static_cast<int>(bytes), is_write, aligned,
                       to_pc(caller));
}

// The start of every record that UBSan's checks pass.
struct SourceLocation {
  const char* file;
  uint32_t line;
  uint32_t column;
};

[[noreturn]] void undefined(FindingKind kind, const void* record, const char* what,
                            const void* caller) {
  const auto& source = *static_cast<const SourceLocation*>(record);
  if (running_lane == nullptr) {
    std::fprintf(stderr, "simt: %s at %s:%u, outside a kernel\n", what, source.file, source.line);
    std::abort();
  }
  const Runtime runtime;
  runtime.block.launch().findings.add(kind, place_of(runtime.lane), to_pc(caller), 0, [&] {
    return format("%s at %s:%u:%u", what, source.file, source.line, source.column);
  });
  runtime.block.abandon(runtime.lane);
}

}  // namespace
}  // namespace retnet::simt

using retnet::simt::FindingKind;
using retnet::simt::plain_access;
using retnet::simt::undefined;

#define CALLER __builtin_return_address(0)
#define ALIGNED(n)                                                                         \
  void __tsan_read##n(const void* p) { plain_access(p, n, false, true, CALLER); }          \
  void __tsan_write##n(void* p) { plain_access(p, n, true, true, CALLER); }                \
  void __tsan_volatile_read##n(const void* p) { plain_access(p, n, false, true, CALLER); } \
  void __tsan_volatile_write##n(void* p) { plain_access(p, n, true, true, CALLER); }
#define UNALIGNED(n)                                                                         \
  void __tsan_unaligned_read##n(const void* p) { plain_access(p, n, false, false, CALLER); } \
  void __tsan_unaligned_write##n(void* p) { plain_access(p, n, true, false, CALLER); }
#define UNDEFINED(name, kind, what)                        \
  void __ubsan_handle_##name##_abort(const void* record) { \
    undefined(FindingKind::kind, record, what, CALLER);    \
  }

extern "C" {
ALIGNED(1)
ALIGNED(2)
ALIGNED(4)
ALIGNED(8)
ALIGNED(16)
UNALIGNED(2)
UNALIGNED(4)
UNALIGNED(8)
UNALIGNED(16)
void __tsan_read_range(const void* p, size_t n) { plain_access(p, n, false, false, CALLER); }
void __tsan_write_range(void* p, size_t n) { plain_access(p, n, true, false, CALLER); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
// The guards of function-local statics.
char __tsan_atomic8_load(const volatile char* p, int) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
// What launchers remember (prim/launch.cuh).
int __tsan_atomic32_load(const volatile int* p, int) {
  return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
void __tsan_atomic32_store(volatile int* p, int value, int) {
  __atomic_store_n(p, value, __ATOMIC_SEQ_CST);
}

UNDEFINED(out_of_bounds, kArrayBounds, "index past an array")
UNDEFINED(type_mismatch_v1, kMisaligned, "misaligned access")
UNDEFINED(shift_out_of_bounds, kArithmetic, "shift out of range")
UNDEFINED(add_overflow, kArithmetic, "signed overflow of +")
UNDEFINED(sub_overflow, kArithmetic, "signed overflow of -")
UNDEFINED(mul_overflow, kArithmetic, "signed overflow of *")
UNDEFINED(negate_overflow, kArithmetic, "signed overflow of unary -")
UNDEFINED(divrem_overflow, kArithmetic, "signed overflow of /")
}
