// SPDX-License-Identifier: Apache-2.0
//
// What launchers ask of CUDA's runtime library, for each instantiation of each kernel and at the edges of
// the plans: a library records it, and runs nothing.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "catch.h"
#include "kernels/cuda/norm/launch.h"
#include "kernels/cuda/retention/chunkwise/launch.h"
#include "kernels/cuda/retention/decode_step/launch.h"
#include "kernels/cuda/retention/grad_log_decay/launch.h"
#include "kernels/cuda/rotary/launch.h"
#include "simt/runtime_library.h"

namespace retnet::kernels::cuda {
namespace {

// A library in use while it lives.
class Recorder final : public simt::RuntimeLibrary {
 public:
  Recorder() { simt::use_runtime_library(this); }
  ~Recorder() override { simt::use_runtime_library(nullptr); }

  cudaError_t launch(const simt::LaunchShape& shape, void (*)(const void*), const void*,
                     size_t) override {
    if (fails_at == static_cast<int>(launches.size())) return cudaErrorMemoryAllocation;
    // As CUDA: more than 48 KB only if the kernel has asked for it.
    if (!dynamic_shared_.allows(shape)) return cudaErrorInvalidValue;
    launches.push_back(shape);
    return cudaSuccess;
  }
  cudaError_t set_dynamic_shared(const void* kernel, int bytes) override {
    return dynamic_shared_.allow(kernel, bytes, shared_bytes);
  }
  cudaError_t get_code_architecture(int* architecture, const void*) override {
    ++questions;
    if (code_architecture == 0) return cudaErrorInvalidValue;
    *architecture = code_architecture;
    return cudaSuccess;
  }
  cudaError_t get_device(int* number) override {
    if (device < 0) return cudaErrorNoDevice;
    *number = device;
    return cudaSuccess;
  }
  cudaError_t get_attribute(int*, cudaDeviceAttr, int) override { return cudaErrorNotSupported; }

  size_t shared_bytes = kShared90;
  int code_architecture = 90;  // 0: not known
  int device = 0;              // negative: none
  int fails_at = -1;           // that launch
  int questions = 0;           // for an architecture
  std::vector<simt::LaunchShape> launches;

 private:
  simt::DynamicShared dynamic_shared_;
};

const auto kStream = reinterpret_cast<cudaStream_t>(uintptr_t{0x5000});

// Memory to look at: nothing is read.
template <class T>
T* fake(size_t offset = 0) {
  return reinterpret_cast<T*>(uintptr_t{0x100000} + offset);
}

void check_shape(const simt::LaunchShape& launch, int64_t blocks, unsigned threads, size_t shared,
                 unsigned cluster = 1) {
  CHECK(static_cast<int64_t>(launch.grid.x) == blocks);
  CHECK((launch.grid.y == 1 && launch.grid.z == 1));
  CHECK(launch.block.x == threads);
  CHECK((launch.block.y == 1 && launch.block.z == 1));
  CHECK(launch.dynamic_shared == shared);
  CHECK(launch.cluster == cluster);
  CHECK(launch.stream == kStream);
}

bool no_error_is_left() { return cudaGetLastError() == cudaSuccess; }

// Each launch fails once: its error is returned, and nothing is launched after it.
template <class F>
void check_failures(int launches, const F& call) {
  for (int i = 0; i < launches; ++i) {
    CAPTURE(i);
    Recorder recorder;
    recorder.fails_at = i;
    CHECK(call() == cudaErrorMemoryAllocation);
    CHECK(static_cast<int>(recorder.launches.size()) == i);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);  // the caller's, who takes it
  }
}

ChunkwiseParams chunkwise_params(DType dtype, int64_t sequences, int64_t heads, int64_t head_dim_qk,
                                 int64_t head_dim_v) {
  ChunkwiseParams p;
  p.batch = p.sequences = sequences;
  p.tokens = 100;
  p.heads = heads;
  p.head_dim_qk = head_dim_qk;
  p.head_dim_v = head_dim_v;
  p.dtype = dtype;
  for (RetentionOperand* x : {&p.q, &p.k, &p.v}) *x = {fake<void>(), 1 << 20, 1 << 10, 1 << 8};
  p.out_ptr = fake<void>();
  p.log_decay_ptr = p.initial_state_ptr = fake<float>();
  p.final_state_ptr = p.workspace_ptr = fake<float>();
  return p;
}

ChunkwisePlan whole(int tile, int64_t sequences, int64_t slices) {
  ChunkwisePlan plan;
  plan.tile = tile;
  plan.slices = slices;
  plan.segments = sequences;
  return plan;
}

constexpr DType kHalves[] = {DType::kFloat16, DType::kBFloat16};
constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

}  // namespace

TEST_CASE("chunkwise: a block for each slice of each head, with the tile's threads and memory") {
  std::set<const void*> kernels;
  for (const DType dtype : kHalves) {
    for (int tile = 0; tile < kChunkwiseTileCount; ++tile) {
      CAPTURE(static_cast<int>(dtype), tile);
      const ChunkwiseTile& shape = kChunkwiseTiles[tile];
      Recorder recorder;
      const auto p = chunkwise_params(dtype, 5, 3, shape.head_dim_qk, 2 * shape.slice - 4);
      CHECK(launch_chunkwise(p, whole(tile, 5, 2), kStream) == cudaSuccess);
      REQUIRE(recorder.launches.size() == 1);
      check_shape(recorder.launches[0], 5 * 3 * 2, shape.threads(), shape.shared_bytes());
      kernels.insert(recorder.launches[0].kernel);

      // A device with less shared memory: the error is returned, and not left for the next call.
      Recorder small;
      small.shared_bytes = shape.shared_bytes() - 1;
      const bool asks = shape.shared_bytes() > 48 << 10;
      CHECK(launch_chunkwise(p, whole(tile, 5, 2), kStream) ==
            (asks ? cudaErrorInvalidValue : cudaSuccess));
      CHECK(small.launches.empty() == asks);
      CHECK(no_error_is_left());
    }
  }
  CHECK(kernels.size() == 2 * kChunkwiseTileCount);
}

TEST_CASE("chunkwise: of 99 KB there is a tile for every head, and it is launched") {
  for (const DType dtype : kHalves) {
    for (const int64_t head_dim_qk : {4, 64, 68, 128, 132, 256}) {
      for (const int64_t head_dim_v : {4, 64, 128, 260, 512}) {
        CAPTURE(head_dim_qk, head_dim_v);
        Recorder recorder;
        recorder.shared_bytes = kShared86;
        const auto p = chunkwise_params(dtype, 200, 1, head_dim_qk, head_dim_v);
        const auto plan = chunkwise_plan(p, {86, 84, kShared86}, 0, false);
        REQUIRE(plan.unsupported_reason == nullptr);
        CHECK(launch_chunkwise(p, plan, kStream) == cudaSuccess);
        REQUIRE(recorder.launches.size() == 1);
        const ChunkwiseTile& shape = kChunkwiseTiles[plan.tile];
        check_shape(recorder.launches[0], 200 * plan.slices, shape.threads(), shape.shared_bytes());
        CHECK(shape.shared_bytes() <= kShared86);
      }
    }
  }
}

TEST_CASE("chunkwise: segments are three launches in order") {
  for (const DType dtype : kHalves) {
    Recorder recorder;
    auto p = chunkwise_params(dtype, 2, 3, 64, 60);
    p.tokens = 1100;
    ChunkwisePlan plan = whole(0, 6, 1);
    plan.segment_length = 512;
    CHECK(launch_chunkwise(p, plan, kStream) == cudaSuccess);
    REQUIRE(recorder.launches.size() == 3);
    const ChunkwiseTile& tile = kChunkwiseTiles[0];
    check_shape(recorder.launches[0], 6 * 3, tile.threads(), tile.shared_bytes());
    check_shape(recorder.launches[1], 2 * 3 * 15, kSegmentScanThreads, 0);  // 64 * 60 / 256
    check_shape(recorder.launches[2], 6 * 3, tile.threads(), tile.shared_bytes());
    CHECK(recorder.launches[0].kernel == recorder.launches[2].kernel);
    CHECK(recorder.launches[0].kernel != recorder.launches[1].kernel);
    check_failures(3, [&] { return launch_chunkwise(p, plan, kStream); });

    Recorder none;
    p.workspace_ptr = nullptr;
    CHECK(launch_chunkwise(p, plan, kStream) == cudaErrorInvalidValue);
    CHECK(none.launches.empty());
  }
}

TEST_CASE("chunkwise: what launches nothing") {
  Recorder recorder;
  const auto p = chunkwise_params(DType::kBFloat16, 2, 3, 64, 64);
  CHECK(launch_chunkwise(p, whole(0, 0, 1), kStream) == cudaSuccess);
  auto no_heads = p;
  no_heads.heads = 0;
  CHECK(launch_chunkwise(no_heads, whole(0, 2, 1), kStream) == cudaSuccess);
  ChunkwisePlan unsupported = whole(0, 2, 1);
  unsupported.unsupported_reason = "no";
  CHECK(launch_chunkwise(p, unsupported, kStream) == cudaErrorInvalidValue);
  CHECK(launch_chunkwise(p, whole(kChunkwiseTileCount, 2, 1), kStream) == cudaErrorInvalidValue);
  for (RetentionOperand ChunkwiseParams::*x :
       {&ChunkwiseParams::q, &ChunkwiseParams::k, &ChunkwiseParams::v}) {
    auto odd = p;
    (odd.*x).ptr = fake<void>(4);
    CHECK(launch_chunkwise(odd, whole(0, 2, 1), kStream) == cudaErrorInvalidValue);
  }
  CHECK(recorder.launches.empty());
}

TEST_CASE("chunkwise: grids up to 2^31 - 1 blocks, and the plan refuses more") {
  constexpr DeviceLimits kH100{90, 132, kShared90};
  Recorder recorder;
  auto p = chunkwise_params(DType::kBFloat16, INT32_MAX, 1, 64, 64);
  CHECK(launch_chunkwise(p, chunkwise_plan(p, kH100, 0, false), kStream) == cudaSuccess);
  REQUIRE(recorder.launches.size() == 1);
  CHECK(recorder.launches[0].grid.x == INT32_MAX);
  p.batch = ++p.sequences;
  CHECK(chunkwise_plan(p, kH100, 0, false).unsupported_reason ==
        std::string("the launch would need more than 2^31 - 1 blocks"));
}

TEST_CASE("chunkwise: the scan of segments has a block for 256 elements of each state") {
  constexpr DeviceLimits kH100{90, 132, kShared90};
  Recorder recorder;
  auto p = chunkwise_params(DType::kBFloat16, 1, 1, 256, 512);  // 512 blocks a sequence
  p.tokens = 2 * kChunkwiseBatchInvariantSegment;
  p.cu_seqlens_ptr = fake<int32_t>();  // most sequences are empty
  p.sequences = INT32_MAX / 512;
  CHECK(launch_chunkwise(p, chunkwise_plan(p, kH100, 0, true), kStream) == cudaSuccess);
  REQUIRE(recorder.launches.size() == 3);
  CHECK(recorder.launches[1].grid.x == p.sequences * 512);
  ++p.sequences;  // 2^31 blocks, of which an unsigned int would keep 0 from twice that on
  CHECK(chunkwise_plan(p, kH100, 0, true).unsupported_reason ==
        std::string("the scan of segments would need more than 2^31 - 1 blocks"));
  p.tokens = kChunkwiseBatchInvariantSegment;  // not cut
  CHECK(chunkwise_plan(p, kH100, 0, true).unsupported_reason == nullptr);
}

TEST_CASE(
    "grad_log_decay: a block for each slice of each head, with the tile's threads and memory") {
  std::set<const void*> kernels;
  for (const DType dtype : kHalves) {
    for (int tile = 0; tile < kGradLogDecayTileCount; ++tile) {
      CAPTURE(static_cast<int>(dtype), tile);
      const GradLogDecayTile& shape = kGradLogDecayTiles[tile];
      GradLogDecayParams p{chunkwise_params(dtype, 5, 3, shape.head_dim_qk, 68), {}};
      p.gradients.grad_out = p.forward.v;
      GradLogDecayPlan plan;
      plan.tile = tile;
      plan.slices = 2;
      const auto call = [&] { return launch_grad_log_decay(p, plan, kStream); };
      Recorder recorder;
      CHECK(call() == cudaSuccess);
      REQUIRE(recorder.launches.size() == 1);
      check_shape(recorder.launches[0], 5 * 3 * 2, shape.threads(), shape.shared_bytes());
      kernels.insert(recorder.launches[0].kernel);
      check_failures(1, call);

      Recorder small;
      small.shared_bytes = shape.shared_bytes() - 1;
      const bool asks = shape.shared_bytes() > 48 << 10;
      CHECK(call() == (asks ? cudaErrorInvalidValue : cudaSuccess));
      CHECK(no_error_is_left());
    }
  }
  CHECK(kernels.size() == 2 * kGradLogDecayTileCount);
}

TEST_CASE("grad_log_decay: what launches nothing, and the largest grid") {
  constexpr DeviceLimits kH100{90, 132, kShared90};
  Recorder recorder;
  GradLogDecayParams p{chunkwise_params(DType::kBFloat16, 2, 3, 64, 64), {}};
  p.gradients.grad_out = p.forward.v;
  auto plan = grad_log_decay_plan(p.forward, kH100);
  auto empty = p;
  empty.forward.sequences = 0;
  CHECK(launch_grad_log_decay(empty, plan, kStream) == cudaSuccess);
  empty = p;
  empty.forward.heads = 0;
  CHECK(launch_grad_log_decay(empty, plan, kStream) == cudaSuccess);
  auto odd = p;
  odd.gradients.grad_out.ptr = fake<void>(2);
  CHECK(launch_grad_log_decay(odd, plan, kStream) == cudaErrorInvalidValue);
  plan.unsupported_reason = "no";
  CHECK(launch_grad_log_decay(p, plan, kStream) == cudaErrorInvalidValue);
  plan = grad_log_decay_plan(p.forward, kH100);
  plan.tile = kGradLogDecayTileCount;
  CHECK(launch_grad_log_decay(p, plan, kStream) == cudaErrorInvalidValue);
  CHECK(recorder.launches.empty());

  p.forward.batch = p.forward.sequences = INT32_MAX;
  p.forward.heads = 1;
  CHECK(launch_grad_log_decay(p, grad_log_decay_plan(p.forward, kH100), kStream) == cudaSuccess);
  REQUIRE(recorder.launches.size() == 1);
  CHECK(recorder.launches[0].grid.x == INT32_MAX);
}

namespace {

template <class Params>
Params norm_params(DType dtype, int vector, int64_t tokens, int64_t heads, int64_t head_dim_v) {
  Params p;
  p.tokens = tokens;
  p.heads = heads;
  p.head_dim_v = head_dim_v;
  p.dtype = dtype;
  p.x_ptr = fake<void>(vector * element_size(dtype) == 8 ? 8 : 0);
  p.x_stride_h = head_dim_v;
  p.x_stride_n = heads * head_dim_v;
  return p;
}

// dtypes and elements per access that the kernels of norm and rotary are instantiated for.
struct Instance {
  DType dtype;
  int vector;
};
constexpr Instance kInstances[] = {{DType::kFloat32, 4},
                                   {DType::kFloat16, 4},
                                   {DType::kFloat16, 8},
                                   {DType::kBFloat16, 4},
                                   {DType::kBFloat16, 8}};

}  // namespace

TEST_CASE("gated_group_norm: a block for as many rows as its threads hold") {
  std::set<const void*> kernels;
  for (const auto& [dtype, vector] : kInstances) {
    for (const auto& tile : kGatedGroupNormTiles) {
      CAPTURE(static_cast<int>(dtype), vector, tile.max_head_dim_v);
      Recorder recorder;
      auto p = norm_params<GatedGroupNormParams>(dtype, vector, 33, 3, tile.max_head_dim_v);
      REQUIRE(gated_group_norm_vector(p) == vector);
      CHECK(launch_gated_group_norm(p, kStream) == cudaSuccess);
      REQUIRE(recorder.launches.size() == 1);
      const int64_t rows = kGatedGroupNormBlock / tile.threads_per_row;
      check_shape(recorder.launches[0], (99 + rows - 1) / rows, kGatedGroupNormBlock, 0);
      kernels.insert(recorder.launches[0].kernel);
      check_failures(1, [&] { return launch_gated_group_norm(p, kStream); });
    }
  }
  CHECK(kernels.size() == std::size(kInstances) * kGatedGroupNormTileCount);
}

TEST_CASE("gated_group_norm: what launches nothing, and the largest grid") {
  Recorder recorder;
  using Params = GatedGroupNormParams;
  const auto launch = [&](const Params& p) { return launch_gated_group_norm(p, kStream); };
  CHECK(launch(norm_params<Params>(DType::kFloat32, 4, 0, 3, 64)) == cudaSuccess);
  CHECK(launch(norm_params<Params>(DType::kFloat32, 4, 5, 0, 64)) == cudaSuccess);
  CHECK(launch(norm_params<Params>(DType::kFloat32, 4, 5, 3, 63)) == cudaErrorNotSupported);
  CHECK(launch(norm_params<Params>(DType::kFloat32, 4, int64_t{1} << 31, 1, 64)) ==
        cudaErrorNotSupported);
  CHECK(recorder.launches.empty());
  CHECK(launch(norm_params<Params>(DType::kFloat32, 4, INT32_MAX, 1, 1024)) == cudaSuccess);
  REQUIRE(recorder.launches.size() == 1);
  CHECK(recorder.launches[0].grid.x == 1u << 30);  // two rows a block
}

TEST_CASE("gated_group_norm_backward: rows, then the sums of weight and of bias") {
  std::set<const void*> kernels, sums;
  for (const auto& [dtype, vector] : kInstances) {
    for (const auto& tile : kGatedGroupNormTiles) {
      CAPTURE(static_cast<int>(dtype), vector, tile.max_head_dim_v);
      auto p = norm_params<GatedGroupNormBackwardParams>(dtype, vector, 33, 3, tile.max_head_dim_v);
      p.grad_out_ptr = p.x_ptr;
      p.grad_out_stride_h = p.x_stride_h;
      p.grad_out_stride_n = p.x_stride_n;
      p.grad_x_ptr = p.grad_gate_ptr = fake<void>();
      p.grad_weight_ptr = p.grad_bias_ptr = fake<float>();
      p.grad_weight_per_head = true;
      p.workspace_ptr = fake<void>();
      REQUIRE(gated_group_norm_vector(p) == vector);
      const auto call = [&] { return launch_gated_group_norm_backward(p, kStream); };
      Recorder recorder;
      CHECK(call() == cudaSuccess);
      REQUIRE(recorder.launches.size() == 3);
      const int64_t rows = kGatedGroupNormBlock / tile.threads_per_row;
      const int64_t blocks =
          std::min<int64_t>(kGatedGroupNormBackwardBlocks / 3, (33 + rows - 1) / rows);
      check_shape(recorder.launches[0], 3 * blocks, kGatedGroupNormBlock, 0);
      check_shape(recorder.launches[1], 3 * tile.max_head_dim_v / 32, 512, 0);
      check_shape(recorder.launches[2], tile.max_head_dim_v / 32, 512, 0);
      kernels.insert(recorder.launches[0].kernel);
      sums.insert({recorder.launches[1].kernel, recorder.launches[2].kernel});
      check_failures(3, call);

      recorder.launches.clear();
      simt::use_runtime_library(&recorder);
      p.tokens = 0;  // the sums are zeros
      CHECK(call() == cudaSuccess);
      CHECK(recorder.launches.size() == 2);
      p.tokens = 33;
      p.workspace_ptr = nullptr;
      CHECK(call() == cudaErrorInvalidValue);
      CHECK(recorder.launches.size() == 2);
      p.grad_weight_ptr = p.grad_bias_ptr = nullptr;
      CHECK(call() == cudaSuccess);
      CHECK(recorder.launches.size() == 3);
      p.grad_x_ptr = p.grad_gate_ptr = nullptr;
      CHECK(call() == cudaSuccess);
      CHECK(recorder.launches.size() == 3);
      p.head_dim_v = 2;
      CHECK(call() == cudaErrorNotSupported);
    }
  }
  CHECK(kernels.size() == std::size(kInstances) * kGatedGroupNormTileCount);
  CHECK(sums.size() == 1);
}

TEST_CASE("column_sum: a block for 32 columns, at most 2^20") {
  Recorder recorder;
  ColumnSumParams p{fake<float>(), fake<float>(), 5, 0};
  CHECK(launch_column_sum(p, kStream) == cudaSuccess);
  CHECK(recorder.launches.empty());
  for (const auto& [columns, blocks] : {std::pair<int64_t, int64_t>{1, 1},
                                        {33, 2},
                                        {int64_t{1} << 25, 1 << 20},
                                        {int64_t{1} << 40, 1 << 20}}) {
    p.columns = columns;
    CHECK(launch_column_sum(p, kStream) == cudaSuccess);
    check_shape(recorder.launches.back(), blocks, 512, 0);
  }
}

TEST_CASE("rotary: a thread for each access of the heads that share angles") {
  std::set<const void*> kernels;
  for (const auto& [dtype, vector] : kInstances) {
    for (const bool interleaved : {false, true}) {
      CAPTURE(static_cast<int>(dtype), vector, interleaved);
      RotaryParams p;
      p.batch = 2;
      p.tokens = 77;
      p.heads = kRotaryHeads + 1;
      p.head_dim_qk = 64;
      p.dtype = dtype;
      p.interleaved = interleaved;
      p.q = {fake<void>(vector * element_size(dtype) == 8 ? 8 : 0), 77 * 64 * 9, 64 * 9, 64,
             fake<void>()};
      p.frequencies_ptr = fake<float>();
      p.positions_ptr = fake<void>();
      REQUIRE(rotary_vector(p) == vector);
      const auto call = [&] { return launch_rotary(p, kStream); };
      Recorder recorder;
      CHECK(call() == cudaSuccess);
      REQUIRE(recorder.launches.size() == 1);
      const int64_t threads = 2 * 77 * 2 * (64 / vector / (interleaved ? 1 : 2));
      check_shape(recorder.launches[0], (threads + kRotaryBlock - 1) / kRotaryBlock, kRotaryBlock,
                  0);
      kernels.insert(recorder.launches[0].kernel);
      check_failures(1, call);

      Recorder none;
      for (int64_t RotaryParams::*size : {&RotaryParams::batch, &RotaryParams::tokens}) {
        auto empty = p;
        empty.*size = 0;
        CHECK(launch_rotary(empty, kStream) == cudaSuccess);
      }
      auto absent = p;
      absent.q.in_ptr = nullptr;
      CHECK(launch_rotary(absent, kStream) == cudaSuccess);
      auto odd = p;
      odd.head_dim_qk = 6;
      CHECK(launch_rotary(odd, kStream) == cudaErrorNotSupported);
      CHECK(none.launches.empty());

      // The most threads whose number fits, and one token more.
      const int64_t per_token = threads / (2 * 77);
      p.batch = 1;
      p.tokens = (INT32_MAX - kRotaryBlock) / per_token;
      CHECK(call() == cudaSuccess);
      REQUIRE(none.launches.size() == 1);
      CHECK(static_cast<int64_t>(none.launches[0].grid.x) * kRotaryBlock >= p.tokens * per_token);
      ++p.tokens;
      CHECK(call() == cudaErrorNotSupported);
    }
  }
  CHECK(kernels.size() == 2 * std::size(kInstances));
}

namespace {

DecodeStepParams decode_params(DType dtype, bool wide) {
  DecodeStepParams p;
  p.batch = p.states = 3;
  p.heads = 5;
  p.head_dim_qk = 63;
  p.head_dim_v = 512;
  p.dtype = dtype;
  p.state_ptr = fake<float>(wide ? 0 : 4);
  p.state_stride_k = 512;
  p.state_stride_h = 63 * 512;
  p.state_stride_s = 5 * 63 * 512;
  return p;
}

}  // namespace

TEST_CASE("decode_step: the blocks that share a head are a cluster") {
  std::set<const void*> kernels;
  for (const DType dtype : kDTypes) {
    for (const bool wide : {false, true}) {
      const auto p = decode_params(dtype, wide);
      REQUIRE(decode_step_wide(p) == wide);
      Recorder recorder;
      for (const int cluster : {1, 2, 4, 8}) {
        CAPTURE(static_cast<int>(dtype), wide, cluster);
        CHECK(decode_step_launched_cluster(p, cluster) == cluster);
        CHECK(launch_decode_step(p, cluster, kStream) == cudaSuccess);
        check_shape(recorder.launches.back(), 15 * cluster, kDecodeStepThreads,
                    decode_step_shared_bytes(63, 512, cluster), cluster);
        kernels.insert(recorder.launches.back().kernel);
        check_failures(1, [&] { return launch_decode_step(p, cluster, kStream); });
        simt::use_runtime_library(&recorder);
      }
      CHECK(recorder.launches.size() == 4);
    }
  }
  CHECK(kernels.size() == 6);
}

TEST_CASE("decode_step: code without clusters, and code that nothing is known of, has none") {
  int device = 1;  // each its own: what is known of a device stays known
  for (const DType dtype : kDTypes) {
    for (const bool wide : {false, true}) {
      const auto p = decode_params(dtype, wide);
      for (const int code : {0, 80, 89, 90, 120}) {
        CAPTURE(static_cast<int>(dtype), wide, code);
        Recorder recorder;
        recorder.device = device++;
        recorder.code_architecture = code;
        const unsigned cluster = code >= 90 ? 8 : 1;
        for (int i = 0; i < 3; ++i) {
          CHECK(launch_decode_step(p, 8, kStream) == cudaSuccess);
          check_shape(recorder.launches[i], 15 * cluster, kDecodeStepThreads,
                      decode_step_shared_bytes(63, 512, static_cast<int>(cluster)), cluster);
          CHECK(decode_step_launched_cluster(p, 8) == static_cast<int>(cluster));
        }
        CHECK(recorder.questions ==
              (code == 0 ? 6 : 1));  // once for each device, if it is answered
        CHECK(no_error_is_left());
      }
    }
  }
  Recorder recorder;
  const auto p = decode_params(DType::kBFloat16, true);
  recorder.device = -1;
  CHECK(decode_step_launched_cluster(p, 8) == 1);
  CHECK(no_error_is_left());
  recorder.device = 64;  // more devices than are remembered
  CHECK(decode_step_launched_cluster(p, 8) == 8);
  recorder.code_architecture = 80;
  CHECK(decode_step_launched_cluster(p, 8) == 1);
}

TEST_CASE("decode_step: what launches nothing, and the largest grid") {
  Recorder recorder;
  auto p = decode_params(DType::kFloat32, true);
  p.batch = 0;
  CHECK(launch_decode_step(p, 8, kStream) == cudaSuccess);
  p = decode_params(DType::kFloat32, true);
  p.heads = 0;
  CHECK(launch_decode_step(p, 8, kStream) == cudaSuccess);
  p = decode_params(DType::kFloat32, true);
  p.heads = 1;
  p.batch = INT32_MAX / kDecodeStepMaxCluster + 1;
  CHECK(launch_decode_step(p, 8, kStream) == cudaErrorNotSupported);
  CHECK(recorder.launches.empty());
  --p.batch;
  CHECK(launch_decode_step(p, 8, kStream) == cudaSuccess);
  REQUIRE(recorder.launches.size() == 1);
  CHECK(recorder.launches[0].grid.x == INT32_MAX - 7);
}

}  // namespace retnet::kernels::cuda
