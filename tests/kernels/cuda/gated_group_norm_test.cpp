// SPDX-License-Identifier: Apache-2.0
//
// The host decides which calls the gated group norm kernels support, with which accesses, and the workspace of
// the backward. These tests need no GPU and no CUDA header.
#include <cstdint>

#include "catch.h"
#include "kernels/cuda/norm/plan.h"

namespace retnet::kernels::cuda {
namespace {

/// An address that the checks look at. Nothing is read from it.
template <class T = void>
T* address(uintptr_t value) {
  return reinterpret_cast<T*>(value);
}

/// Returns contiguous x and gate [N, H, Dv], weight and bias [Dv] in float32, with aligned pointers.
template <class Params>
Params contiguous(DType dtype, int64_t tokens, int64_t heads, int64_t head_dim_v) {
  Params p;
  p.tokens = tokens;
  p.heads = heads;
  p.head_dim_v = head_dim_v;
  p.dtype = dtype;
  p.x_ptr = address(0x10000);
  p.gate_ptr = address(0x20000);
  p.x_stride_n = p.gate_stride_n = heads * head_dim_v;
  p.x_stride_h = p.gate_stride_h = head_dim_v;
  p.weight_ptr = address(0x30000);
  p.bias_ptr = address(0x40000);
  return p;
}

GatedGroupNormParams forward(DType dtype, int64_t head_dim_v) {
  auto p = contiguous<GatedGroupNormParams>(dtype, 100, 8, head_dim_v);
  p.out_ptr = address(0x50000);
  return p;
}

TEST_CASE("every multiple of 4 up to 1024 has the narrowest tile that holds it") {
  for (int64_t v = 4; v <= 1024; v += 4) {
    CAPTURE(v);
    const int tile = gated_group_norm_tile(v);
    REQUIRE(tile >= 0);
    CHECK(kGatedGroupNormTiles[tile].max_head_dim_v >= v);
    if (tile > 0) CHECK(kGatedGroupNormTiles[tile - 1].max_head_dim_v < v);
  }
  for (const int64_t v : {-4, 0, 1, 2, 6, 430, 1022, 1028, 1 << 20}) {
    CAPTURE(v);
    CHECK(gated_group_norm_tile(v) == -1);
    CHECK_FALSE(supports_gated_group_norm(forward(DType::kFloat32, v)));
  }
}

TEST_CASE("accesses are of 16 bytes if every row allows it, else of 8") {
  struct {
    DType dtype;
    int64_t head_dim_v;
    int vector;
  } const cases[] = {
      {DType::kBFloat16, 512, 8}, {DType::kBFloat16, 432, 8}, {DType::kBFloat16, 428, 4},
      {DType::kFloat16, 8, 8},    {DType::kFloat16, 4, 4},    {DType::kFloat32, 512, 4},
      {DType::kFloat32, 428, 4},
  };
  for (const auto& c : cases) {
    CAPTURE(static_cast<int>(c.dtype), c.head_dim_v);
    CHECK(gated_group_norm_vector(forward(c.dtype, c.head_dim_v)) == c.vector);
    CHECK(supports_gated_group_norm(forward(c.dtype, c.head_dim_v)));
  }
}

TEST_CASE("one array aligned to 8 bytes only narrows the accesses, to less makes them impossible") {
  const auto check = [](auto change) {
    auto p = forward(DType::kBFloat16, 512);
    change(p, 4);
    CHECK(gated_group_norm_vector(p) == 4);
    p = forward(DType::kBFloat16, 512);
    change(p, 2);
    CHECK_FALSE(supports_gated_group_norm(p));
  };
  check([](auto& p, int n) { p.x_ptr = address(0x10000 + 2 * n); });
  check([](auto& p, int n) { p.x_stride_n += n; });
  check([](auto& p, int n) { p.x_stride_h += n; });
  check([](auto& p, int n) { p.gate_ptr = address(0x20000 + 2 * n); });
  check([](auto& p, int n) { p.gate_stride_n += n; });
  check([](auto& p, int n) { p.gate_stride_h += n; });
  check([](auto& p, int n) { p.out_ptr = address(0x50000 + 2 * n); });
  check([](auto& p, int n) {
    p.weight_dtype = p.dtype;
    p.weight_stride_h = 512 + n;
  });
  check([](auto& p, int n) {
    p.bias_dtype = p.dtype;
    p.bias_ptr = address(0x40000 + 2 * n);
  });
}

TEST_CASE("float32 weights need 16 bytes whatever x's dtype") {
  for (const auto dtype : {DType::kFloat32, DType::kBFloat16}) {
    auto p = forward(dtype, 512);
    p.weight_ptr = address(0x30008);
    CHECK_FALSE(supports_gated_group_norm(p));
  }
}

TEST_CASE("the stride of a dimension of one element is not looked at") {
  auto p = contiguous<GatedGroupNormParams>(DType::kBFloat16, 1, 1, 512);
  p.x_stride_n = p.x_stride_h = p.gate_stride_n = p.weight_stride_h = 3;
  CHECK(gated_group_norm_vector(p) == 8);
  p.tokens = 2;
  CHECK_FALSE(supports_gated_group_norm(p));
}

TEST_CASE("strides of 0 are taken: expanded rows") {
  auto p = forward(DType::kFloat16, 512);
  p.x_stride_n = p.gate_stride_h = 0;
  CHECK(gated_group_norm_vector(p) == 8);
}

TEST_CASE("weight and bias are float32 or of x's dtype") {
  auto p = forward(DType::kBFloat16, 512);
  p.weight_dtype = DType::kFloat16;
  CHECK_FALSE(supports_gated_group_norm(p));
  p.weight_ptr = nullptr;  // its dtype no longer matters
  CHECK(supports_gated_group_norm(p));
  p.bias_dtype = DType::kFloat16;
  CHECK_FALSE(supports_gated_group_norm(p));
}

TEST_CASE("empty shapes are taken, more rows than an int32 counts are not") {
  for (const int64_t tokens : {int64_t{0}, int64_t{1} << 20}) {
    for (const int64_t heads : {0, 8}) {
      CHECK(supports_gated_group_norm(
          contiguous<GatedGroupNormParams>(DType::kBFloat16, tokens, heads, 64)));
    }
  }
  auto p = contiguous<GatedGroupNormParams>(DType::kBFloat16, INT32_MAX, 1, 64);
  CHECK(supports_gated_group_norm(p));
  p.heads = 2;
  CHECK_FALSE(supports_gated_group_norm(p));
  p.tokens = int64_t{1} << 62;
  p.heads = 8;  // the product overflows 64 bits
  CHECK_FALSE(supports_gated_group_norm(p));
}

TEST_CASE("grad_out, grad_x and grad_gate take part in the backward's choice") {
  auto p = contiguous<GatedGroupNormBackwardParams>(DType::kBFloat16, 100, 8, 512);
  p.grad_out_stride_n = 8 * 512;
  p.grad_out_stride_h = 512;
  CHECK(gated_group_norm_vector(p) == 8);
  p.grad_out_stride_h = 516;
  CHECK(gated_group_norm_vector(p) == 4);
  p.grad_x_ptr = address(0x60004);
  CHECK_FALSE(supports_gated_group_norm(p));
  p.grad_x_ptr = nullptr;
  p.grad_gate_ptr = address(0x70002);
  CHECK_FALSE(supports_gated_group_norm(p));
}

TEST_CASE("the backward's blocks cover the tokens and are bounded") {
  struct {
    int64_t tokens, heads, head_dim_v, blocks_per_head;
  } const cases[] = {
      {0, 8, 512, 0},        {1, 8, 512, 1},       {4, 8, 512, 1}, {5, 8, 512, 2},
      {100000, 8, 512, 128}, {100000, 8, 64, 128}, {17, 8, 64, 2}, {3, 1, 1024, 2},
      {100, 1024, 512, 1},   {100, 5000, 512, 1},  {5, 0, 512, 0},
  };
  for (const auto& c : cases) {
    CAPTURE(c.tokens, c.heads, c.head_dim_v);
    auto p =
        contiguous<GatedGroupNormBackwardParams>(DType::kBFloat16, c.tokens, c.heads, c.head_dim_v);
    CHECK(gated_group_norm_blocks_per_head(p) == c.blocks_per_head);
    const auto partial = static_cast<size_t>(c.blocks_per_head * c.heads * c.head_dim_v) * 4;
    CHECK(gated_group_norm_workspace_bytes(p) == 0);
    p.grad_weight_ptr = address<float>(0x80000);
    CHECK(gated_group_norm_workspace_bytes(p) == partial);
    p.grad_bias_ptr = address<float>(0x90000);
    CHECK(gated_group_norm_workspace_bytes(p) == 2 * partial);
  }
}

}  // namespace
}  // namespace retnet::kernels::cuda
