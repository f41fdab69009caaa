// SPDX-License-Identifier: Apache-2.0
//
// The tile table and the plan of the chunkwise kernel.
#include <cstring>
#include <string>

#include "catch.h"
#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {
namespace {

constexpr DeviceLimits kA100{80, 108, kShared80}, kRtx4090{89, 128, kShared86};
constexpr DeviceLimits kH100{90, 132, kShared90}, kT4{75, 40, 64 << 10};

ChunkwiseParams call(int64_t B, int64_t T, int64_t H, int64_t Dk, int64_t Dv,
                     DType dtype = DType::kBFloat16) {
  ChunkwiseParams p;
  p.batch = p.sequences = B;
  p.tokens = T;
  p.heads = H;
  p.head_dim_qk = Dk;
  p.head_dim_v = Dv;
  p.dtype = dtype;
  return p;
}

ChunkwisePlan plan(const ChunkwiseParams& p, const DeviceLimits& device = kH100, int64_t chunk = 0,
                   bool batch_invariance_required = false) {
  return chunkwise_plan(p, device, chunk, batch_invariance_required);
}

std::string reason(const ChunkwisePlan& plan) {
  return plan.unsupported_reason != nullptr ? plan.unsupported_reason : "";
}

}  // namespace

TEST_CASE("every tile fits what it is meant for") {
  for (const auto& tile : kChunkwiseTiles) {
    INFO("tile " << tile.head_dim_qk << " x " << tile.slice << " x " << tile.chunk);
    // The state, outputs and scores of a thread leave room for operands and addresses.
    const int score_rows = tile.chunk / 16 * (tile.chunk / 8);
    const int warps = tile.slice / 16;
    const int scores = 4 * (score_rows > warps ? score_rows / warps : 1);
    CHECK(tile.head_dim_qk / tile.halves() / 2 + tile.chunk / 2 + scores <= 192);
    CHECK(tile.threads() <= 1024);
    CHECK(tile.shared_bytes() <= kShared80);
  }
  CHECK(kChunkwiseTiles[3].shared_bytes() == (136 << 10) + 512);
  CHECK(kChunkwiseTiles[4].shared_bytes() <= kShared86);
  CHECK(kChunkwiseTiles[5].shared_bytes() == 121088);
}

TEST_CASE("every head that the kernel promises has a tile on every device") {
  for (const DeviceLimits& device : {kA100, kRtx4090, kH100}) {
    for (int64_t Dk = 4; Dk <= kChunkwiseMaxHeadDimQk; Dk += 4) {
      for (int64_t Dv = 4; Dv <= kChunkwiseMaxHeadDimV; Dv += 4) {
        const ChunkwisePlan p = plan(call(4, 1000, 16, Dk, Dv), device);
        REQUIRE(p.unsupported_reason == nullptr);
        const ChunkwiseTile& tile = kChunkwiseTiles[p.tile];
        REQUIRE(tile.head_dim_qk >= Dk);
        REQUIRE(tile.head_dim_qk < 2 * (Dk > 32 ? Dk : 64));
        REQUIRE(p.slices * tile.slice >= Dv);
        REQUIRE((p.slices - 1) * tile.slice < Dv);
        REQUIRE(tile.shared_bytes() <= device.shared_bytes);
      }
    }
  }
}

TEST_CASE("every gradient of a promised head has a tile if shared memory allows it") {
  for (const DeviceLimits& device : {kA100, kRtx4090, kH100}) {
    for (int64_t Dk = 4; Dk <= kChunkwiseMaxHeadDimQk; Dk += 4) {
      for (int64_t Dv = 4; Dv <= kChunkwiseMaxHeadDimV; Dv += 4) {
        const ChunkwiseParams forward = call(4, 1000, 16, Dk, Dv);
        for (const auto pass :
             {ChunkwisePass::kGradQ, ChunkwisePass::kGradK, ChunkwisePass::kGradV}) {
          const ChunkwiseParams p = chunkwise_gradient(pass, forward, {});
          const ChunkwisePlan its = plan(p, device);
          if (pass != ChunkwisePass::kGradV && Dv > 256 && device.shared_bytes == kShared86) {
            REQUIRE(reason(its).find("shared") != std::string::npos);
            continue;
          }
          REQUIRE(its.unsupported_reason == nullptr);
          const ChunkwiseTile& tile = kChunkwiseTiles[its.tile];
          REQUIRE(tile.head_dim_qk >= p.head_dim_qk);
          REQUIRE(its.slices * tile.slice >= p.head_dim_v);
          REQUIRE((tile.halves() == 2) == (pass != ChunkwisePass::kGradV && Dv > 256));
          REQUIRE(tile.shared_bytes() <= device.shared_bytes);
        }
      }
    }
  }
}

TEST_CASE("what the kernel does not take is told") {
  CHECK(reason(plan(call(1, 8, 1, 64, 64, DType::kFloat32))).find("bfloat16") != std::string::npos);
  CHECK(reason(plan(call(1, 8, 1, 64, 64), kT4)).find("capability") != std::string::npos);
  CHECK(reason(plan(call(1, 8, 1, 66, 64))).find("multiples of 4") != std::string::npos);
  CHECK(reason(plan(call(1, 8, 1, 64, 65))).find("multiples of 4") != std::string::npos);
  CHECK(reason(plan(call(1, 8, 1, 260, 64))).find("at most 256") != std::string::npos);
  CHECK(reason(plan(call(1, 8, 1, 64, 516))).find("at most 512") != std::string::npos);
  CHECK(reason(plan(call(1, (int64_t{1} << 30) + 1, 1, 64, 64))).find("2^30") != std::string::npos);
  CHECK(reason(plan(call(int64_t{1} << 26, 8, 64, 64, 64))).find("blocks") != std::string::npos);
  CHECK(reason(plan(call(1, 8, 1, 64, 64), kH100, 48)).find("chunk_size") != std::string::npos);
  CHECK(reason(plan(call(1, 8, 1, 64, 64), {90, 132, 48 << 10})).find("shared") !=
        std::string::npos);
  CHECK(plan(call(1, 8, 1, 64, 64), kH100, 64).unsupported_reason == nullptr);
  // The chunk size selects another tile that fits too.
  CHECK(kChunkwiseTiles[plan(call(1, 8, 1, 256, 512), kH100, 32).tile].chunk == 32);
}

TEST_CASE("sequences are cut if they leave a device idle") {
  const ChunkwisePlan full = plan(call(4, 8192, 8, 256, 512));  // 32 heads, 128 blocks
  CHECK(full.segment_length == 0);
  CHECK(full.segments == 4);
  CHECK(full.workspace_bytes == 0);

  const ChunkwisePlan cut = plan(call(1, 8192, 4, 256, 512));  // 16 blocks
  CHECK(cut.segment_length > 0);
  CHECK(cut.segment_length % 64 == 0);
  CHECK(cut.segments == (8192 + cut.segment_length - 1) / cut.segment_length);
  CHECK(cut.segments * 4 * cut.slices > 132 / 2);
  CHECK(cut.segments * 4 * cut.slices <= 132);  // all run at once
  CHECK(cut.workspace_bytes == static_cast<size_t>(cut.segments) * 4 * 256 * 512 * 4);

  CHECK(plan(call(1, 400, 4, 256, 512)).segment_length == 0);  // too short to cut
  CHECK(plan(call(1, 0, 4, 256, 512)).segment_length == 0);
}

TEST_CASE("if batch invariance is required, the cut depends on the sequence alone") {
  for (const int64_t B : {1, 64}) {
    for (const int64_t T : {2049, 8192, 100000}) {
      const ChunkwisePlan p = plan(call(B, T, 4, 128, 256), kH100, 0, true);
      CHECK(p.segment_length == kChunkwiseBatchInvariantSegment);
      CHECK(p.segments == B * ((T + 2047) / 2048));
    }
    CHECK(plan(call(B, 2048, 4, 128, 256), kH100, 0, true).segment_length == 0);
  }
  // The tile depends only on the head and the device, with or without the flag.
  CHECK(plan(call(1, 5, 1, 128, 256), kH100, 0, true).tile ==
        plan(call(64, 8192, 64, 128, 256)).tile);
  // Packed sequences have room for parts of any lengths.
  ChunkwiseParams packed = call(1, 10000, 4, 128, 256);
  const int32_t bound = 0;
  packed.cu_seqlens_ptr = &bound;
  packed.sequences = 7;
  CHECK(plan(packed, kH100, 0, true).segments == 10000 / 2048 + 7);
}

TEST_CASE("alignment of operands") {
  ChunkwiseParams p = call(2, 8, 2, 64, 64);
  alignas(16) char memory[64];
  RetentionOperand operand{memory, 8 * 2 * 64, 2 * 64, 64};
  CHECK(chunkwise_aligned(operand, p));
  p.q = p.k = p.v = operand;
  CHECK(chunkwise_wide(p));
  operand.ptr = memory + 8;
  CHECK(chunkwise_aligned(operand, p));
  p.v = operand;
  CHECK_FALSE(chunkwise_wide(p));
  operand.ptr = memory + 4;
  CHECK_FALSE(chunkwise_aligned(operand, p));
  operand.ptr = memory;
  operand.stride_h = 66;
  CHECK_FALSE(chunkwise_aligned(operand, p));
  p.heads = 1;  // never used
  CHECK(chunkwise_aligned(operand, p));
}

}  // namespace retnet::kernels::cuda
