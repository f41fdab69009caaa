// SPDX-License-Identifier: Apache-2.0
//
// What the host decides for the step of decoding: which calls the kernel takes, with which accesses
// to the state, and how many blocks share a head. No GPU and no CUDA header needed.
#include <cstdint>

#include "catch.h"
#include "kernels/cuda/retention/step/cost_model.h"

namespace retnet::kernels::cuda {
namespace {

constexpr DeviceLimits kH100{90, 132, kShared90}, kA100{80, 108, kShared80};

RetentionStepParams contiguous(int64_t batch, int64_t heads, int64_t key_dim, int64_t value_dim) {
  RetentionStepParams p;
  p.batch = p.states = batch;
  p.heads = heads;
  p.key_dim = key_dim;
  p.value_dim = value_dim;
  p.dtype = DType::kBFloat16;
  p.state_ptr = reinterpret_cast<float*>(uintptr_t{0x10000});  // to look at; nothing is read
  p.state_stride_k = value_dim;
  p.state_stride_h = key_dim * value_dim;
  p.state_stride_s = heads * p.state_stride_h;
  return p;
}

}  // namespace

TEST_CASE("step: the kernel takes heads of up to 1024 channels, weights of float32 or q's dtype") {
  CHECK(retention_step_supported(contiguous(2, 4, 1024, 1024)));
  CHECK(retention_step_supported(contiguous(0, 4, 1, 1)));
  CHECK_FALSE(retention_step_supported(contiguous(2, 4, 1025, 64)));
  CHECK_FALSE(retention_step_supported(contiguous(2, 4, 64, 1025)));
  CHECK_FALSE(retention_step_supported(contiguous(int64_t{1} << 30, 1, 64, 64)));
  auto p = contiguous(2, 4, 64, 64);
  p.weight_ptr = p.bias_ptr = p.state_ptr;
  p.weight_dtype = p.bias_dtype = DType::kBFloat16;
  CHECK(retention_step_supported(p));
  p.bias_dtype = DType::kFloat16;
  CHECK_FALSE(retention_step_supported(p));
}

TEST_CASE("step: 16-byte accesses where every row of the state allows them") {
  CHECK(retention_step_wide(contiguous(2, 4, 64, 428)));
  CHECK_FALSE(retention_step_wide(contiguous(2, 4, 64, 430)));
  auto p = contiguous(2, 4, 64, 64);
  p.state_ptr += 2;
  CHECK_FALSE(retention_step_wide(p));
  for (int64_t RetentionStepParams::*stride :
       {&RetentionStepParams::state_stride_s, &RetentionStepParams::state_stride_h,
        &RetentionStepParams::state_stride_k}) {
    p = contiguous(2, 4, 64, 64);
    p.*stride += 2;
    CHECK_FALSE(retention_step_wide(p));
    p.states = p.heads = p.key_dim = 1;  // of one element: never used
    CHECK(retention_step_wide(p));
  }
}

TEST_CASE("step: few rows share their heads among blocks, of which none is without columns") {
  CHECK(retention_step_cluster(contiguous(1, 8, 256, 512), kH100) == 8);
  CHECK(retention_step_cluster(contiguous(16, 8, 256, 512), kH100) == 1);
  CHECK(retention_step_cluster(contiguous(1, 8, 256, 512), kA100) == 1);
  CHECK(retention_step_cluster(contiguous(1, 8, 256, 64), kH100) == 1);
  for (int64_t value_dim = 4; value_dim <= kStepMaxDim; value_dim += 4) {
    CAPTURE(value_dim);
    const int cluster = retention_step_cluster(contiguous(1, 1, 256, value_dim), kH100);
    const bool power_of_two = (cluster & (cluster - 1)) == 0;
    CHECK(power_of_two);
    CHECK(cluster <= kStepMaxCluster);
    CHECK((cluster - 1) * step_columns(value_dim, cluster) < value_dim);
    CHECK(cluster * step_columns(value_dim, cluster) >= value_dim);
    CHECK(step_shared_bytes(kStepMaxDim, value_dim, cluster) <= 48 << 10);
  }
}

}  // namespace retnet::kernels::cuda
