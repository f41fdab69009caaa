// SPDX-License-Identifier: Apache-2.0
//
// The host decides which calls the rotary kernel supports, and with which accesses. These tests need no GPU and
// no CUDA header.
#include <cstdint>

#include "catch.h"
#include "kernels/cuda/rotary/plan.h"

namespace retnet::kernels::cuda {
namespace {

/// Returns contiguous q and k [2, 5, 3, Dk], with aligned pointers.
RotaryParams contiguous(DType dtype, int64_t head_dim_qk, bool interleaved) {
  RotaryParams p;
  p.batch = 2;
  p.tokens = 5;
  p.heads = 3;
  p.head_dim_qk = head_dim_qk;
  p.dtype = dtype;
  p.interleaved = interleaved;
  for (RotaryOperand* x : {&p.q, &p.k}) {
    x->in_ptr = reinterpret_cast<void*>(0x10000);
    x->out_ptr = reinterpret_cast<void*>(0x20000);
    x->stride_h = head_dim_qk;
    x->stride_t = 3 * head_dim_qk;
    x->stride_b = 15 * head_dim_qk;
  }
  return p;
}

TEST_CASE("rotary: accesses are of 16 bytes if every row allows it, else of 8") {
  struct {
    DType dtype;
    int64_t head_dim_qk;
    bool interleaved;
    int vector;
  } const cases[] = {
      {DType::kBFloat16, 256, true, 8}, {DType::kBFloat16, 256, false, 8},
      {DType::kFloat16, 20, true, 4},   {DType::kFloat16, 24, false, 4},
      {DType::kFloat16, 4, true, 4},    {DType::kFloat16, 4, false, 0},
      {DType::kFloat32, 256, true, 4},  {DType::kFloat32, 12, false, 0},
      {DType::kFloat32, 2, true, 0},    {DType::kFloat32, 1 << 20, false, 4},
  };
  for (const auto& c : cases) {
    CAPTURE(static_cast<int>(c.dtype), c.head_dim_qk, c.interleaved);
    const RotaryParams p = contiguous(c.dtype, c.head_dim_qk, c.interleaved);
    CHECK(rotary_vector(p) == c.vector);
    CHECK(supports_rotary(p) == (c.vector > 0));
  }
}

TEST_CASE(
    "rotary: one array aligned to 8 bytes only narrows the accesses, to less makes them "
    "impossible") {
  const auto check = [](auto change) {
    auto p = contiguous(DType::kBFloat16, 64, true);
    change(p.k, 4);
    CHECK(rotary_vector(p) == 4);
    p = contiguous(DType::kBFloat16, 64, true);
    change(p.q, 2);
    CHECK_FALSE(supports_rotary(p));
  };
  check([](auto& x, int n) { x.in_ptr = reinterpret_cast<void*>(0x10000 + 2 * n); });
  check([](auto& x, int n) { x.out_ptr = reinterpret_cast<void*>(0x20000 + 2 * n); });
  check([](auto& x, int n) { x.stride_b += n; });
  check([](auto& x, int n) { x.stride_t += n; });
  check([](auto& x, int n) { x.stride_h += n; });
}

TEST_CASE("rotary: the stride of a dimension of one element is not looked at; 0 is taken") {
  auto p = contiguous(DType::kBFloat16, 64, false);
  p.batch = p.tokens = p.heads = 1;
  for (RotaryOperand* x : {&p.q, &p.k}) x->stride_b = x->stride_t = x->stride_h = 3;
  CHECK(rotary_vector(p) == 8);
  p.tokens = 2;
  CHECK_FALSE(supports_rotary(p));
  p.q.stride_t = p.k.stride_t = 0;
  CHECK(rotary_vector(p) == 8);
}

TEST_CASE("rotary: empty shapes are taken, more threads than an int32 counts are not") {
  for (int64_t RotaryParams::*size :
       {&RotaryParams::batch, &RotaryParams::tokens, &RotaryParams::heads}) {
    auto p = contiguous(DType::kFloat16, 64, true);
    p.*size = 0;
    CHECK(supports_rotary(p));
    p.*size = -1;
    CHECK_FALSE(supports_rotary(p));
    p.*size = int64_t{1} << 40;
    CHECK_FALSE(supports_rotary(p));
  }
  // A token of 17 heads of 64 takes 3 x 8 threads.
  auto p = contiguous(DType::kFloat16, 64, true);
  p.heads = 17;
  CHECK(rotary_threads_per_token(p, 8) == 24);
  p.batch = 1;
  p.tokens = (INT32_MAX - kRotaryBlock) / 24;
  CHECK(supports_rotary(p));
  p.tokens += 1;
  CHECK_FALSE(supports_rotary(p));
  p.interleaved = false;
  CHECK(rotary_threads_per_token(p, 8) == 12);
  CHECK(supports_rotary(p));
}

}  // namespace
}  // namespace retnet::kernels::cuda
