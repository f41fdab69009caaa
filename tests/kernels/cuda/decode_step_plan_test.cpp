// SPDX-License-Identifier: Apache-2.0
//
// The host decides which calls the decode-step kernel supports, how it accesses the state, and how many blocks
// share a head. These tests need no GPU and no CUDA header.
#include <cstdint>

#include "catch.h"
#include "kernels/cuda/retention/decode_step/cost_model.h"

namespace retnet::kernels::cuda {
namespace {

constexpr DeviceLimits kH100{90, 132, kShared90}, kA100{80, 108, kShared80};

DecodeStepParams contiguous(int64_t batch, int64_t heads, int64_t head_dim_qk, int64_t head_dim_v) {
  DecodeStepParams p;
  p.batch = p.states = batch;
  p.heads = heads;
  p.head_dim_qk = head_dim_qk;
  p.head_dim_v = head_dim_v;
  p.dtype = DType::kBFloat16;
  p.state_ptr =
      reinterpret_cast<float*>(uintptr_t{0x10000});  // an address; nothing is read from it
  p.state_stride_k = head_dim_v;
  p.state_stride_h = head_dim_qk * head_dim_v;
  p.state_stride_s = heads * p.state_stride_h;
  return p;
}

}  // namespace

TEST_CASE(
    "decode_step: the kernel takes heads of up to 1024 channels, weights of float32 or q's dtype") {
  CHECK(supports_decode_step(contiguous(2, 4, 1024, 1024)));
  CHECK(supports_decode_step(contiguous(0, 4, 1, 1)));
  CHECK_FALSE(supports_decode_step(contiguous(2, 4, 1025, 64)));
  CHECK_FALSE(supports_decode_step(contiguous(2, 4, 64, 1025)));
  CHECK_FALSE(supports_decode_step(contiguous(int64_t{1} << 30, 1, 64, 64)));
  auto p = contiguous(2, 4, 64, 64);
  p.weight_ptr = p.bias_ptr = p.state_ptr;
  p.weight_dtype = p.bias_dtype = DType::kBFloat16;
  CHECK(supports_decode_step(p));
  p.bias_dtype = DType::kFloat16;
  CHECK_FALSE(supports_decode_step(p));
}

TEST_CASE("decode_step: 16-byte accesses if every row of the state allows them") {
  CHECK(decode_step_wide(contiguous(2, 4, 64, 428)));
  CHECK_FALSE(decode_step_wide(contiguous(2, 4, 64, 430)));
  auto p = contiguous(2, 4, 64, 64);
  p.state_ptr += 2;
  CHECK_FALSE(decode_step_wide(p));
  for (int64_t DecodeStepParams::*stride :
       {&DecodeStepParams::state_stride_s, &DecodeStepParams::state_stride_h,
        &DecodeStepParams::state_stride_k}) {
    p = contiguous(2, 4, 64, 64);
    p.*stride += 2;
    CHECK_FALSE(decode_step_wide(p));
    p.states = p.heads = p.head_dim_qk = 1;  // a dimension of size 1 never uses its stride
    CHECK(decode_step_wide(p));
  }
}

TEST_CASE("decode_step: blocks share the heads of a small batch, and none is without columns") {
  CHECK(decode_step_cluster(contiguous(1, 8, 256, 512), kH100) == 8);
  CHECK(decode_step_cluster(contiguous(16, 8, 256, 512), kH100) == 1);
  CHECK(decode_step_cluster(contiguous(1, 8, 256, 512), kA100) == 1);
  CHECK(decode_step_cluster(contiguous(1, 8, 256, 64), kH100) == 1);
  for (int64_t head_dim_v = 4; head_dim_v <= kDecodeStepMaxDim; head_dim_v += 4) {
    CAPTURE(head_dim_v);
    const int cluster = decode_step_cluster(contiguous(1, 1, 256, head_dim_v), kH100);
    const bool power_of_two = (cluster & (cluster - 1)) == 0;
    CHECK(power_of_two);
    CHECK(cluster <= kDecodeStepMaxCluster);
    CHECK((cluster - 1) * decode_step_columns(head_dim_v, cluster) < head_dim_v);
    CHECK(cluster * decode_step_columns(head_dim_v, cluster) >= head_dim_v);
    CHECK(decode_step_shared_bytes(kDecodeStepMaxDim, head_dim_v, cluster) <= 48 << 10);
  }
}

}  // namespace retnet::kernels::cuda
