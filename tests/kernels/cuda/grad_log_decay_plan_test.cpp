// SPDX-License-Identifier: Apache-2.0
//
// The tile table and the plan of the log_decay gradient kernel.
#include <string>

#include "catch.h"
#include "kernels/cuda/retention/grad_log_decay/plan.h"

namespace retnet::kernels::cuda {
namespace {

constexpr DeviceLimits kA100{80, 108, kShared80}, kRtx4090{89, 128, kShared86};
constexpr DeviceLimits kH100{90, 132, kShared90}, kT4{75, 40, 64 << 10};

ChunkwiseParams call(int64_t N, int64_t T, int64_t H, int64_t Dk, int64_t Dv,
                     DType dtype = DType::kBFloat16) {
  ChunkwiseParams p;
  p.batch = p.sequences = N;
  p.tokens = T;
  p.heads = H;
  p.head_dim_qk = Dk;
  p.head_dim_v = Dv;
  p.dtype = dtype;
  return p;
}

std::string reason(const GradLogDecayPlan& plan) {
  return plan.unsupported_reason != nullptr ? plan.unsupported_reason : "";
}

}  // namespace

TEST_CASE("grad_log_decay: every head that the kernel promises has a tile on every device") {
  for (const DeviceLimits& device : {kA100, kRtx4090, kH100}) {
    for (int64_t Dk = 4; Dk <= kChunkwiseMaxHeadDimQk; Dk += 4) {
      for (int64_t Dv = 4; Dv <= kChunkwiseMaxHeadDimV; Dv += 4) {
        const GradLogDecayPlan plan = grad_log_decay_plan(call(4, 1000, 16, Dk, Dv), device);
        REQUIRE(plan.unsupported_reason == nullptr);
        const GradLogDecayTile& tile = kGradLogDecayTiles[plan.tile];
        REQUIRE(tile.head_dim_qk >= Dk);
        REQUIRE(
            (plan.tile == 0 || kGradLogDecayTiles[plan.tile - 1].head_dim_qk <= tile.head_dim_qk));
        REQUIRE(tile.shared_bytes() <= device.shared_bytes);
        REQUIRE(plan.slices == (Dv + tile.slice - 1) / tile.slice);
      }
    }
  }
}

TEST_CASE("grad_log_decay: the tile depends on the head and the device alone") {
  for (const int64_t T : {1, 64, 100000}) {
    for (const int64_t N : {1, 64}) {
      CHECK(grad_log_decay_plan(call(N, T, 3, 64, 64), kA100).tile == 0);
      CHECK(grad_log_decay_plan(call(N, T, 3, 68, 64), kRtx4090).tile == 1);
      CHECK(grad_log_decay_plan(call(N, T, 3, 256, 512), kH100).tile == 2);
      CHECK(grad_log_decay_plan(call(N, T, 3, 132, 512), kRtx4090).tile == 3);
    }
  }
  CHECK(kGradLogDecayTiles[2].shared_bytes() == (160 << 10) + 1536);
}

TEST_CASE("grad_log_decay: unsupported calls") {
  CHECK(reason(grad_log_decay_plan(call(1, 1, 1, 64, 64, DType::kFloat32), kH100)) ==
        "the kernel supports only bfloat16 and float16");
  CHECK(reason(grad_log_decay_plan(call(1, 1, 1, 64, 64), kT4)) ==
        "the kernel needs compute capability 8.0");
  CHECK(reason(grad_log_decay_plan(call(1, 1, 1, 260, 64), kH100)) ==
        "Dk must be at most 256 and Dv at most 512");
  CHECK(reason(grad_log_decay_plan(call(1, 1, 1, 66, 64), kH100)) ==
        "Dk and Dv must be multiples of 4");
  // The tile of the forward kernel has slices of 128.
  CHECK(reason(grad_log_decay_plan(call(1 << 20, 1, 256, 256, 512), kH100)) ==
        "the gradient of log_decay would need more than 2^31 - 1 blocks");
  CHECK(reason(grad_log_decay_plan(call(1, 1, 1, 256, 64), {86, 80, 79 << 10})) != "");
  CHECK(grad_log_decay_plan(call(1 << 20, 1, 255, 256, 512), kH100).unsupported_reason == nullptr);
}

TEST_CASE("grad_log_decay: wide copies need all four operands at multiples of 16 bytes") {
  ChunkwiseParams p = call(1, 10, 1, 64, 64);
  const RetentionOperand at16{reinterpret_cast<const void*>(1024), 640, 64, 64};
  const RetentionOperand at8{reinterpret_cast<const void*>(1032), 640, 64, 64};
  const RetentionOperand between{reinterpret_cast<const void*>(1024), 640, 68, 64};
  p.q = p.k = p.v = at16;
  CHECK(grad_log_decay_wide(p, at16));
  CHECK(grad_log_decay_wide(p, {}));
  CHECK_FALSE(grad_log_decay_wide(p, at8));
  CHECK_FALSE(grad_log_decay_wide(p, between));
  p.q = at8;
  CHECK_FALSE(grad_log_decay_wide(p, at16));
}

}  // namespace retnet::kernels::cuda
