// SPDX-License-Identifier: Apache-2.0
//
// The chunkwise kernel's tile table and plan.
#include <cstring>
#include <string>

#include "catch.h"
#include "kernels/cuda/retention/chunkwise/plan.h"

namespace retnet::kernels::cuda {
namespace {

constexpr DeviceLimits kA100{80, 108, kShared80}, kRtx4090{89, 128, kShared86};
constexpr DeviceLimits kH100{90, 132, kShared90}, kT4{75, 40, 64 << 10};

ChunkwiseParams call(int64_t B, int64_t T, int64_t H, int64_t K, int64_t V,
                     DType dtype = DType::kBFloat16) {
  ChunkwiseParams p;
  p.batch = p.sequences = B;
  p.tokens = T;
  p.heads = H;
  p.inner = K;
  p.outer = V;
  p.dtype = dtype;
  return p;
}

ChunkwisePlan plan(const ChunkwiseParams& p, const DeviceLimits& device = kH100, int64_t chunk = 0,
                   bool deterministic = false) {
  return chunkwise_plan(p, device, chunk, deterministic);
}

std::string refusal(const ChunkwisePlan& plan) { return plan.refusal ? plan.refusal : ""; }

}  // namespace

TEST_CASE("every tile fits what it is meant for") {
  for (const auto& tile : kChunkwiseTiles) {
    INFO("tile " << tile.inner << " x " << tile.slice << " x " << tile.chunk);
    // State, outputs and scores of a thread leave room for operands and addresses.
    const int score_rows = tile.chunk / 16 * (tile.chunk / 8);
    const int warps = tile.slice / 16;
    const int scores = 4 * (score_rows > warps ? score_rows / warps : 1);
    CHECK(tile.inner / tile.halves() / 2 + tile.chunk / 2 + scores <= 192);
    CHECK(tile.threads() <= 1024);
    CHECK(tile.shared_bytes() <= kShared80);
  }
  CHECK(kChunkwiseTiles[3].shared_bytes() == (136 << 10) + 512);
  CHECK(kChunkwiseTiles[4].shared_bytes() <= kShared86);
  CHECK(kChunkwiseTiles[5].shared_bytes() == 121088);
}

TEST_CASE("every head that the kernel promises has a tile on every device") {
  for (const DeviceLimits& device : {kA100, kRtx4090, kH100}) {
    for (int64_t K = 4; K <= kChunkwiseMaxKey; K += 4) {
      for (int64_t V = 4; V <= kChunkwiseMaxValue; V += 4) {
        const ChunkwisePlan p = plan(call(4, 1000, 16, K, V), device);
        REQUIRE(p.refusal == nullptr);
        const ChunkwiseTile& tile = kChunkwiseTiles[p.tile];
        REQUIRE(tile.inner >= K);
        REQUIRE(tile.inner < 2 * (K > 32 ? K : 64));
        REQUIRE(p.slices * tile.slice >= V);
        REQUIRE((p.slices - 1) * tile.slice < V);
        REQUIRE(tile.shared_bytes() <= device.shared_bytes);
      }
    }
  }
}

TEST_CASE("every gradient of a promised head has a tile where shared memory allows it") {
  for (const DeviceLimits& device : {kA100, kRtx4090, kH100}) {
    for (int64_t K = 4; K <= kChunkwiseMaxKey; K += 4) {
      for (int64_t V = 4; V <= kChunkwiseMaxValue; V += 4) {
        const ChunkwiseParams forward = call(4, 1000, 16, K, V);
        for (const auto pass : {ChunkwisePass::kQ, ChunkwisePass::kK, ChunkwisePass::kV}) {
          const ChunkwiseParams p = chunkwise_gradient(pass, forward, {});
          const ChunkwisePlan its = plan(p, device);
          if (pass != ChunkwisePass::kV && V > 256 && device.shared_bytes == kShared86) {
            REQUIRE(refusal(its).find("shared") != std::string::npos);
            continue;
          }
          REQUIRE(its.refusal == nullptr);
          const ChunkwiseTile& tile = kChunkwiseTiles[its.tile];
          REQUIRE(tile.inner >= p.inner);
          REQUIRE(its.slices * tile.slice >= p.outer);
          REQUIRE((tile.halves() == 2) == (pass != ChunkwisePass::kV && V > 256));
          REQUIRE(tile.shared_bytes() <= device.shared_bytes);
        }
      }
    }
  }
}

TEST_CASE("what the kernel does not take is told") {
  CHECK(refusal(plan(call(1, 8, 1, 64, 64, DType::kFloat32))).find("bfloat16") !=
        std::string::npos);
  CHECK(refusal(plan(call(1, 8, 1, 64, 64), kT4)).find("capability") != std::string::npos);
  CHECK(refusal(plan(call(1, 8, 1, 66, 64))).find("multiples of 4") != std::string::npos);
  CHECK(refusal(plan(call(1, 8, 1, 64, 65))).find("multiples of 4") != std::string::npos);
  CHECK(refusal(plan(call(1, 8, 1, 260, 64))).find("at most 256") != std::string::npos);
  CHECK(refusal(plan(call(1, 8, 1, 64, 516))).find("at most 512") != std::string::npos);
  CHECK(refusal(plan(call(1, (int64_t{1} << 30) + 1, 1, 64, 64))).find("2^30") !=
        std::string::npos);
  CHECK(refusal(plan(call(int64_t{1} << 26, 8, 64, 64, 64))).find("blocks") != std::string::npos);
  CHECK(refusal(plan(call(1, 8, 1, 64, 64), kH100, 48)).find("chunk_size") != std::string::npos);
  CHECK(refusal(plan(call(1, 8, 1, 64, 64), {90, 132, 48 << 10})).find("shared") !=
        std::string::npos);
  CHECK(plan(call(1, 8, 1, 64, 64), kH100, 64).refusal == nullptr);
  // A chunk size of another tile that fits too.
  CHECK(kChunkwiseTiles[plan(call(1, 8, 1, 256, 512), kH100, 32).tile].chunk == 32);
}

TEST_CASE("sequences are cut where they leave a device idle") {
  const ChunkwisePlan full = plan(call(4, 8192, 8, 256, 512));  // 32 heads, 128 blocks
  CHECK(full.segment_length == 0);
  CHECK(full.rows == 4);
  CHECK(full.workspace_bytes == 0);

  const ChunkwisePlan cut = plan(call(1, 8192, 4, 256, 512));  // 16 blocks
  CHECK(cut.segment_length > 0);
  CHECK(cut.segment_length % 64 == 0);
  CHECK(cut.rows == (8192 + cut.segment_length - 1) / cut.segment_length);
  CHECK(cut.rows * 4 * cut.slices > 132 / 2);
  CHECK(cut.rows * 4 * cut.slices <= 132);  // at once
  CHECK(cut.workspace_bytes == static_cast<size_t>(cut.rows) * 4 * 256 * 512 * 4);

  CHECK(plan(call(1, 400, 4, 256, 512)).segment_length == 0);  // too short to cut
  CHECK(plan(call(1, 0, 4, 256, 512)).segment_length == 0);
}

TEST_CASE("under deterministic algorithms the cut depends on the sequence alone") {
  for (const int64_t B : {1, 64}) {
    for (const int64_t T : {2049, 8192, 100000}) {
      const ChunkwisePlan p = plan(call(B, T, 4, 128, 256), kH100, 0, true);
      CHECK(p.segment_length == kChunkwiseDeterministicSegment);
      CHECK(p.rows == B * ((T + 2047) / 2048));
    }
    CHECK(plan(call(B, 2048, 4, 128, 256), kH100, 0, true).segment_length == 0);
  }
  // The tile depends on the head and the device alone, flag or no flag.
  CHECK(plan(call(1, 5, 1, 128, 256), kH100, 0, true).tile ==
        plan(call(64, 8192, 64, 128, 256)).tile);
  // Packed: room for the parts of any lengths.
  ChunkwiseParams packed = call(1, 10000, 4, 128, 256);
  const int32_t bound = 0;
  packed.cu_seqlens_ptr = &bound;
  packed.sequences = 7;
  CHECK(plan(packed, kH100, 0, true).rows == 10000 / 2048 + 7);
}

TEST_CASE("alignment of operands") {
  ChunkwiseParams p = call(2, 8, 2, 64, 64);
  alignas(16) char memory[64];
  RetentionOperand operand{memory, 8 * 2 * 64, 2 * 64, 64};
  CHECK(chunkwise_aligned(operand, p));
  p.readout = p.key = p.value = operand;
  CHECK(chunkwise_wide(p));
  operand.ptr = memory + 8;
  CHECK(chunkwise_aligned(operand, p));
  p.value = operand;
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
