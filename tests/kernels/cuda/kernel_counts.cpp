// SPDX-License-Identifier: Apache-2.0
//
// Counts what each kernel does in the SIMT emulator. It prints this and what the cost models of the kernels
// state as JSON for tools/kernel_report.py. It takes the difference of a longer and a shorter run, so that what
// happens once in a run drops out.
#include "kernel_counts.h"

#include "kernels/cuda/norm/cost_model.h"
#include "kernels/cuda/norm/launch.h"
#include "kernels/cuda/retention/chunkwise/launch.h"
#include "kernels/cuda/retention/decode_step/cost_model.h"
#include "kernels/cuda/retention/decode_step/launch.h"
#include "kernels/cuda/rotary/cost_model.h"
#include "kernels/cuda/rotary/launch.h"

namespace retnet::kernels::cuda {
namespace {

/// There are two slices if tiles allow it, so that L2 and device memory differ.
ChunkwiseParams chunkwise_params(DType dtype, int tile) {
  const ChunkwiseTile& shape = kChunkwiseTiles[tile];
  const bool one = shape.head_dim_qk <= 64 && shape.slice < 128;
  return one_sequence(dtype, 2, shape.head_dim_qk, one ? shape.slice : 2 * shape.slice);
}

simt::LaunchCounters run_chunkwise(DType dtype, int tile, int64_t tokens) {
  const std::string what = "chunkwise " + std::to_string(tile);
  // The tiles of short chunks are for devices with little shared memory.
  const size_t shared = kChunkwiseTiles[tile].shared_bytes() <= kShared86 ? kShared86 : kShared80;
  simt::Options options;
  options.shared_limit = shared;
  simt::Simulator simulator(options);
  ChunkwiseParams p = chunkwise_params(dtype, tile);
  p.tokens = tokens;
  set_inputs(simulator, p);
  p.out_ptr = simulator.output<uint16_t>(tokens * p.heads * p.head_dim_v, "out");
  p.final_state_ptr =
      simulator.output<float>(p.heads * p.head_dim_qk * p.head_dim_v, "final_state");
  const ChunkwisePlan plan = chunkwise_plan(p, {kChunkwiseMinCapability, 1, shared}, 0, false);
  require(plan.tile == tile, what + ": the plan takes another tile");
  require(launch_chunkwise(p, plan, nullptr) == cudaSuccess, what + ": launch");
  return finish(simulator, what);
}

std::string chunkwise(DType dtype, int index) {
  const ChunkwiseTile& tile = kChunkwiseTiles[index];
  const ChunkwiseParams p = chunkwise_params(dtype, index);
  constexpr int kShort = 3, kLong = 5;  // chunks
  const simt::LaunchCounters before = run_chunkwise(dtype, index, kShort * tile.chunk);
  const simt::LaunchCounters after = run_chunkwise(dtype, index, kLong * tile.chunk);
  const Object counted = per_chunk(before, after, kLong - kShort, p.heads * tile.chunk);
  const ChunkwiseWavefronts wavefronts = chunkwise_wavefronts(tile);
  Object header;
  header.number("mma", chunkwise_mma(tile).total())
      .number("wavefronts", wavefronts.total())
      .number("ldmatrix", wavefronts.ldmatrix())
      .number("cp_async", wavefronts.copies)
      .number("stores", wavefronts.score_stores + wavefronts.sums)
      .number("loads", wavefronts.weights + wavefronts.sums)
      .number("barriers", chunkwise_barriers(tile))
      .number("l2_bytes",
              static_cast<double>(chunkwise_l2_bytes(tile, p.head_dim_qk, p.head_dim_v)))
      .number("memory_bytes",
              static_cast<double>(chunkwise_memory_bytes(p.head_dim_qk, p.head_dim_v)))
      .number("others_per_mma", chunkwise_max_others_per_mma(tile, dtype));
  std::vector<std::string> intervals;
  for (const CodeInterval& interval : chunkwise_intervals(tile)) {
    if (std::ssize(intervals) < chunkwise_barriers(tile)) intervals.push_back(describe(interval));
  }
  return instantiation("chunkwise", dtype, index, tile, "[]", intervals, counted, header);
}

/// Forward, or backward without the sums over rows.
simt::LaunchCounters run_norm(DType dtype, bool backward, int64_t tokens, int64_t head_dim_v) {
  simt::Simulator simulator;
  GatedGroupNormBackwardParams p;
  p.tokens = tokens;
  p.heads = 2;
  p.head_dim_v = head_dim_v;
  p.dtype = dtype;
  p.eps = 1e-5f;
  const int64_t stride = p.heads * head_dim_v;
  const int64_t bytes = tokens * stride * element_size(dtype);
  p.x_ptr = zeros(simulator, bytes, "x");
  p.gate_ptr = zeros(simulator, bytes, "gate");
  p.x_stride_n = p.gate_stride_n = p.grad_out_stride_n = stride;
  p.x_stride_h = p.gate_stride_h = p.grad_out_stride_h = head_dim_v;
  cudaError_t error;
  if (backward) {
    p.grad_out_ptr = zeros(simulator, bytes, "grad_out");
    p.grad_x_ptr = simulator.output<std::byte>(bytes, "grad_x");
    p.grad_gate_ptr = simulator.output<std::byte>(bytes, "grad_gate");
    error = launch_gated_group_norm_backward(p, nullptr);
  } else {
    GatedGroupNormParams forward;
    static_cast<GatedGroupNormInputs&>(forward) = p;
    forward.out_ptr = simulator.output<std::byte>(bytes, "out");
    error = launch_gated_group_norm(forward, nullptr);
  }
  require(error == cudaSuccess, "gated_group_norm: launch");
  return finish(simulator, "gated_group_norm");
}

std::string norm(DType dtype, bool backward, int64_t head_dim_v) {
  constexpr int64_t kShort = 16, kLong = 48;  // tokens
  const simt::LaunchCounters before = run_norm(dtype, backward, kShort, head_dim_v);
  const simt::LaunchCounters after = run_norm(dtype, backward, kLong, head_dim_v);
  const auto per_row = [](uint64_t x, uint64_t y) {
    return static_cast<double>(y - x) / (2 * (kLong - kShort));
  };
  const simt::Counters &a = before.total, &b = after.total;
  Object counted;
  counted.number("loaded", per_row(a.global_load.requested_bytes, b.global_load.requested_bytes))
      .number("stored", per_row(a.global_store.requested_bytes, b.global_store.requested_bytes))
      .number("memory_bytes", per_row(before.unique_read_bytes + before.unique_written_bytes,
                                      after.unique_read_bytes + after.unique_written_bytes));
  const GatedGroupNormBytes bytes = gated_group_norm_bytes(backward, dtype, head_dim_v);
  const int tile = gated_group_norm_tile(head_dim_v);
  require(tile >= 0, "gated_group_norm: no tile");
  GatedGroupNormParams p;
  p.head_dim_v = p.x_stride_n = head_dim_v;
  p.tokens = 2;
  p.dtype = dtype;
  return Object()
      .text("dtype", name(dtype))
      .text("direction", backward ? "backward" : "forward")
      .number("head_dim_v", static_cast<double>(head_dim_v))
      .number("vector", gated_group_norm_vector(p))
      .number("threads", kGatedGroupNormTiles[tile].threads_per_row)
      .number("rows", gated_group_norm_rows(backward, dtype, head_dim_v))
      .raw("counted", counted.str())
      .raw("header", Object()
                         .number("loaded", static_cast<double>(bytes.loaded))
                         .number("stored", static_cast<double>(bytes.stored))
                         .number("memory_bytes", static_cast<double>(bytes.memory()))
                         .str())
      .str();
}

simt::LaunchCounters run_rotary(DType dtype, bool interleaved, int64_t tokens,
                                int64_t head_dim_qk) {
  simt::Simulator simulator;
  RotaryParams p;
  p.batch = 1;
  p.tokens = tokens;
  p.heads = 8;
  p.head_dim_qk = head_dim_qk;
  p.dtype = dtype;
  p.interleaved = interleaved;
  const int64_t bytes = tokens * p.heads * head_dim_qk * element_size(dtype);
  for (RotaryOperand* x : {&p.q, &p.k}) {
    *x = {zeros(simulator, bytes, "x"), 0, p.heads * head_dim_qk, head_dim_qk};
    x->out_ptr = simulator.output<std::byte>(bytes, "out");
  }
  p.positions_ptr = zeros(simulator, 8 * tokens, "positions");
  p.positions_stride_t = 1;
  p.frequencies_ptr = static_cast<float*>(zeros(simulator, 2 * head_dim_qk, "frequencies"));
  require(launch_rotary(p, nullptr) == cudaSuccess, "rotary: launch");
  return finish(simulator, "rotary");
}

std::string rotary(DType dtype, bool interleaved) {
  constexpr int64_t kHeadDimQk = 256, kShort = 8, kLong = 24;
  const simt::LaunchCounters before = run_rotary(dtype, interleaved, kShort, kHeadDimQk);
  const simt::LaunchCounters after = run_rotary(dtype, interleaved, kLong, kHeadDimQk);
  const double token_heads = 8 * (kLong - kShort);
  const auto header = static_cast<double>(rotary_memory_bytes(dtype, kHeadDimQk));
  const auto moved = [](const simt::LaunchCounters& launch) {
    return static_cast<double>(launch.unique_read_bytes + launch.unique_written_bytes);
  };
  return Object()
      .text("dtype", name(dtype))
      .text("style", interleaved ? "interleaved" : "half")
      .number("head_dim_qk", kHeadDimQk)
      .raw("counted",
           Object().number("memory_bytes", (moved(after) - moved(before)) / token_heads).str())
      .raw("header", Object().number("memory_bytes", header).str())
      .str();
}

simt::LaunchCounters run_decode_step(DType dtype, int cluster, int64_t batch) {
  simt::Simulator simulator;
  DecodeStepParams p;
  p.batch = p.states = batch;
  p.heads = 1;
  p.head_dim_qk = 256;
  p.head_dim_v = 512;
  p.dtype = dtype;
  const auto tokens = [&](int64_t size, const char* name, int64_t& stride) {
    stride = size;
    return zeros(simulator, batch * size * element_size(dtype), name);
  };
  p.q_ptr = tokens(p.head_dim_qk, "q", p.q_stride_b);
  p.k_ptr = tokens(p.head_dim_qk, "k", p.k_stride_b);
  p.v_ptr = tokens(p.head_dim_v, "v", p.v_stride_b);
  p.gate_ptr = tokens(p.head_dim_v, "gate", p.gate_stride_b);
  p.log_decay_ptr = static_cast<float*>(zeros(simulator, 4, "log_decay"));
  p.positions_ptr = zeros(simulator, 8 * batch, "positions");
  p.positions_stride_b = 1;
  p.frequencies_ptr = static_cast<float*>(zeros(simulator, 2 * p.head_dim_qk, "frequencies"));
  p.weight_ptr = zeros(simulator, 4 * p.head_dim_v, "weight");
  p.bias_ptr = zeros(simulator, 4 * p.head_dim_v, "bias");
  p.state_stride_k = p.head_dim_v;
  p.state_stride_h = p.state_stride_s = p.head_dim_qk * p.head_dim_v;
  const std::vector<float> state(batch * p.state_stride_s);
  p.state_ptr = simulator.in_out<float>(state, "state");
  p.out_ptr = simulator.output<std::byte>(batch * p.head_dim_v * element_size(dtype), "out");
  require(launch_decode_step(p, cluster, nullptr) == cudaSuccess, "decode_step: launch");
  return finish(simulator, "decode_step");
}

std::string decode_step(DType dtype, int cluster) {
  const simt::LaunchCounters before = run_decode_step(dtype, cluster, 1);
  const simt::LaunchCounters after = run_decode_step(dtype, cluster, 3);
  const auto per_entry = [](uint64_t x, uint64_t y) { return static_cast<double>(y - x) / 2; };
  const simt::Counters &a = before.total, &b = after.total;
  const Object counted =
      Object()
          .number("memory_bytes", per_entry(before.unique_read_bytes + before.unique_written_bytes,
                                            after.unique_read_bytes + after.unique_written_bytes))
          .number("l2_loaded", per_entry(a.global_load.sector_bytes, b.global_load.sector_bytes))
          .number("l2_stored", per_entry(a.global_store.sector_bytes, b.global_store.sector_bytes))
          .number("barriers", per_entry(a.barriers, b.barriers) / cluster)
          .number("conflicts", static_cast<double>(b.bank_conflicts()));
  return Object()
      .text("dtype", name(dtype))
      .number("cluster", cluster)
      .raw("counted", counted.str())
      .raw("header", Object()
                         .number("memory_bytes",
                                 static_cast<double>(decode_step_memory_bytes(dtype, 256, 512)))
                         .number("barriers", kDecodeStepBarriers)
                         .str())
      .str();
}

/// Returns the batch size with the least share among those of a goal.
std::string decode_step_goal(const DecodeStepGoal& goal, const ModelDevice& device) {
  DecodeStepParams p;
  p.heads = goal.heads;
  p.head_dim_qk = goal.head_dim_qk;
  p.head_dim_v = goal.head_dim_v;
  p.dtype = goal.dtype;
  const auto time = [&](int64_t batch, int& cluster) {
    p.batch = batch;
    cluster = decode_step_cluster(p, device.limits);
    return decode_step_time(p, cluster, device.limits.multiprocessors, device.memory_tbps);
  };
  int cluster = 0;
  int64_t worst = goal.batch;
  for (int64_t batch = worst; batch <= 8 * goal.batch; ++batch) {
    if (time(batch, cluster).share() < time(worst, cluster).share()) worst = batch;
  }
  const DecodeStepTime found = time(worst, cluster);
  return Object()
      .text("device", device.name)
      .text("dtype", name(goal.dtype))
      .number("heads", static_cast<double>(goal.heads))
      .number("from", static_cast<double>(goal.batch))
      .number("batch", static_cast<double>(worst))
      .number("cluster", cluster)
      .number("memory_us", found.memory_ns / 1000)
      .number("latency_us", found.latency_ns / 1000)
      .number("around_us", found.around_ns / 1000)
      .number("tail_us", found.tail_ns / 1000)
      .number("total_us", found.total() / 1000)
      .number("share", found.share())
      .number("goal", goal.share)
      .str();
}

std::string goal(const ChunkwiseGoal& goal, const ModelDevice& device) {
  ChunkwiseParams p = one_sequence(goal.dtype, goal.heads, goal.head_dim_qk, goal.head_dim_v);
  p.tokens = goal.tokens;
  const ChunkwisePlan plan = chunkwise_plan(p, device.limits, 0, false);
  require(plan.unsupported_reason == nullptr && plan.segment_length == 0,
          "a goal is not for whole sequences");
  const ChunkwiseTile& tile = kChunkwiseTiles[plan.tile];
  return describe("chunkwise", goal, device, plan.tile, plan.segments * goal.heads * plan.slices,
                  chunkwise_l2_bytes(tile, goal.head_dim_qk, goal.head_dim_v),
                  chunkwise_memory_bytes(goal.head_dim_qk, goal.head_dim_v));
}

int print() {
  std::vector<std::string> chunkwise_items, norm_items, rotary_items, decode_step_items, devices;
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const int cluster : {1, 8}) decode_step_items.push_back(decode_step(dtype, cluster));
  }
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (int tile = 0; tile < kChunkwiseTileCount; ++tile) {
      chunkwise_items.push_back(chunkwise(dtype, tile));
    }
  }
  for (const bool backward : {false, true}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const int64_t head_dim_v : {128, 256, 428, 432, 512}) {
        norm_items.push_back(norm(dtype, backward, head_dim_v));
      }
    }
  }
  for (const bool interleaved : {true, false}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      rotary_items.push_back(rotary(dtype, interleaved));
    }
  }
  for (const ModelDevice& device : kModelDevices) devices.push_back(describe(device).str());
  std::vector<std::string> goals = for_each_goal(kChunkwiseGoals, goal);
  for (std::string& item : grad_log_decay_goals()) goals.push_back(std::move(item));
  // Architectures with less shared memory than the first tiles of the kernels need. kShared86 names them.
  const auto small = static_cast<double>(kShared86);
  const Object limits = Object().number("86", small).number("89", small).number("120", small);
  std::printf("%s\n",
              Object()
                  .raw("chunkwise", list(chunkwise_items))
                  .raw("grad_log_decay", list(grad_log_decay_counts()))
                  .raw("gated_group_norm", list(norm_items))
                  .raw("rotary", list(rotary_items))
                  .raw("devices", list(devices))
                  .raw("goals", list(goals))
                  .raw("launches", list(kernel_launches()))
                  .raw("decode_step", list(decode_step_items))
                  .raw("decode_step_goals", list(for_each_goal(kDecodeStepGoals, decode_step_goal)))
                  .number("decode_step_fences", kDecodeStepFences)
                  .raw("shared_limits", limits.str())
                  .number("min_capability", kChunkwiseMinCapability)
                  .str()
                  .c_str());
  return 0;
}

}  // namespace
}  // namespace retnet::kernels::cuda

int main() { return retnet::kernels::cuda::print(); }
