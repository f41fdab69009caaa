// SPDX-License-Identifier: Apache-2.0
//
// Counts what each kernel does in the emulator and prints it as JSON beside what the kernels' headers
// state: for tools/kernel_report.py. Of two runs of which one is longer, the difference counts: what
// happens once in a run drops out.
#include "kernel_counts.h"

#include "kernels/cuda/norm/launch.h"
#include "kernels/cuda/retention/chunkwise/launch.h"
#include "kernels/cuda/retention/step/launch.h"
#include "kernels/cuda/rotary/launch.h"

namespace retnet::kernels::cuda {
namespace {

/// Two slices where tiles allow it, so that L2 and device memory differ.
ChunkwiseParams chunkwise_params(DType dtype, int tile) {
  const ChunkwiseTile& shape = kChunkwiseTiles[tile];
  const bool one = shape.inner <= 64 && shape.slice < 128;
  return one_sequence(dtype, 2, shape.inner, one ? shape.slice : 2 * shape.slice);
}

simt::LaunchCounters run_chunkwise(DType dtype, int tile, int64_t tokens) {
  const std::string what = "chunkwise " + std::to_string(tile);
  // The tiles of short chunks are for devices of little shared memory.
  const size_t shared = kChunkwiseTiles[tile].shared_bytes() <= kShared86 ? kShared86 : kShared80;
  simt::Options options;
  options.shared_limit = shared;
  simt::Simulator simulator(options);
  ChunkwiseParams p = chunkwise_params(dtype, tile);
  p.tokens = tokens;
  set_inputs(simulator, p);
  p.out_ptr = simulator.output<uint16_t>(tokens * p.heads * p.outer, "out");
  p.final_state_ptr = simulator.output<float>(p.heads * p.inner * p.outer, "final_state");
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
      .number("l2_bytes", static_cast<double>(chunkwise_l2_bytes(tile, p.inner, p.outer)))
      .number("memory_bytes", static_cast<double>(chunkwise_memory_bytes(p.inner, p.outer)))
      .number("others_per_mma", chunkwise_max_others_per_mma(tile, dtype));
  return instantiation("chunkwise", dtype, index, tile, "[]", counted, header);
}

/// Forward, or backward without the sums over rows.
simt::LaunchCounters run_norm(DType dtype, bool backward, int64_t tokens, int64_t value_dim) {
  simt::Simulator simulator;
  GatedGroupNormBackwardParams p;
  p.tokens = tokens;
  p.heads = 2;
  p.value_dim = value_dim;
  p.dtype = dtype;
  p.eps = 1e-5f;
  const int64_t stride = p.heads * value_dim;
  const int64_t bytes = tokens * stride * element_size(dtype);
  p.x_ptr = zeros(simulator, bytes, "x");
  p.gate_ptr = zeros(simulator, bytes, "gate");
  p.x_stride_n = p.gate_stride_n = p.grad_out_stride_n = stride;
  p.x_stride_h = p.gate_stride_h = p.grad_out_stride_h = value_dim;
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

std::string norm(DType dtype, bool backward, int64_t value_dim) {
  constexpr int64_t kShort = 16, kLong = 48;  // tokens
  const simt::LaunchCounters before = run_norm(dtype, backward, kShort, value_dim);
  const simt::LaunchCounters after = run_norm(dtype, backward, kLong, value_dim);
  const auto per_row = [](uint64_t x, uint64_t y) {
    return static_cast<double>(y - x) / (2 * (kLong - kShort));
  };
  const simt::Counters &a = before.total, &b = after.total;
  Object counted;
  counted.number("loaded", per_row(a.global_load.requested_bytes, b.global_load.requested_bytes))
      .number("stored", per_row(a.global_store.requested_bytes, b.global_store.requested_bytes))
      .number("memory_bytes", per_row(before.unique_read_bytes + before.unique_written_bytes,
                                      after.unique_read_bytes + after.unique_written_bytes));
  // gated_group_norm_forward.cuh and _backward.cuh, point 5.
  const auto row = static_cast<double>(value_dim * element_size(dtype));
  const double loaded = (backward ? 3 : 2) * row, stored = (backward ? 2 : 1) * row;
  const int tile = gated_group_norm_tile(value_dim);
  require(tile >= 0, "gated_group_norm: no tile");
  const int threads = kGatedGroupNormTiles[tile].threads_per_row;
  const int occupancy =
      backward ? gated_group_norm_backward_occupancy(dtype) : kGatedGroupNormForwardOccupancy;
  GatedGroupNormParams p;
  p.value_dim = p.x_stride_n = value_dim;
  p.tokens = 2;
  p.dtype = dtype;
  return Object()
      .text("dtype", name(dtype))
      .text("direction", backward ? "backward" : "forward")
      .number("value_dim", static_cast<double>(value_dim))
      .number("vector", gated_group_norm_vector(p))
      .number("threads", threads)
      .number("rows", occupancy * kGatedGroupNormBlock / threads)
      .raw("counted", counted.str())
      .raw("header", Object()
                         .number("loaded", loaded)
                         .number("stored", stored)
                         .number("memory_bytes", loaded + stored)
                         .str())
      .str();
}

simt::LaunchCounters run_rotary(DType dtype, bool half, int64_t tokens, int64_t key_dim) {
  simt::Simulator simulator;
  RotaryParams p;
  p.batch = 1;
  p.tokens = tokens;
  p.heads = 8;
  p.key_dim = key_dim;
  p.dtype = dtype;
  p.half = half;
  const int64_t bytes = tokens * p.heads * key_dim * element_size(dtype);
  for (RotaryOperand* x : {&p.q, &p.k}) {
    *x = {zeros(simulator, bytes, "x"), 0, p.heads * key_dim, key_dim};
    x->out_ptr = simulator.output<std::byte>(bytes, "out");
  }
  p.position_ptr = zeros(simulator, 8 * tokens, "positions");
  p.position_stride_t = 1;
  p.frequency_ptr = static_cast<float*>(zeros(simulator, 2 * key_dim, "frequencies"));
  require(launch_rotary(p, nullptr) == cudaSuccess, "rotary: launch");
  return finish(simulator, "rotary");
}

std::string rotary(DType dtype, bool half) {
  constexpr int64_t kKeyDim = 256, kShort = 8, kLong = 24;
  const simt::LaunchCounters before = run_rotary(dtype, half, kShort, kKeyDim);
  const simt::LaunchCounters after = run_rotary(dtype, half, kLong, kKeyDim);
  const double rows = 8 * (kLong - kShort);
  const double header = static_cast<double>((2 + 2) * kKeyDim * element_size(dtype));  // point 5
  const auto moved = [](const simt::LaunchCounters& launch) {
    return static_cast<double>(launch.unique_read_bytes + launch.unique_written_bytes);
  };
  return Object()
      .text("dtype", name(dtype))
      .text("style", half ? "half" : "interleaved")
      .number("key_dim", kKeyDim)
      .raw("counted", Object().number("memory_bytes", (moved(after) - moved(before)) / rows).str())
      .raw("header", Object().number("memory_bytes", header).str())
      .str();
}

simt::LaunchCounters run_step(DType dtype, int cluster, int64_t batch) {
  simt::Simulator simulator;
  RetentionStepParams p;
  p.batch = p.states = batch;
  p.heads = 1;
  p.key_dim = 256;
  p.value_dim = 512;
  p.dtype = dtype;
  const auto tokens = [&](int64_t size, const char* name, int64_t& stride) {
    stride = size;
    return zeros(simulator, batch * size * element_size(dtype), name);
  };
  p.q_ptr = tokens(p.key_dim, "q", p.q_stride_b);
  p.k_ptr = tokens(p.key_dim, "k", p.k_stride_b);
  p.v_ptr = tokens(p.value_dim, "v", p.v_stride_b);
  p.gate_ptr = tokens(p.value_dim, "gate", p.gate_stride_b);
  p.log_decay_ptr = static_cast<float*>(zeros(simulator, 4, "log_decay"));
  p.positions_ptr = zeros(simulator, 8 * batch, "positions");
  p.positions_stride_b = 1;
  p.frequencies_ptr = static_cast<float*>(zeros(simulator, 2 * p.key_dim, "frequencies"));
  p.weight_ptr = zeros(simulator, 4 * p.value_dim, "weight");
  p.bias_ptr = zeros(simulator, 4 * p.value_dim, "bias");
  p.state_stride_k = p.value_dim;
  p.state_stride_h = p.state_stride_s = p.key_dim * p.value_dim;
  const std::vector<float> state(batch * p.state_stride_s);
  p.state_ptr = simulator.in_out<float>(state, "state");
  p.out_ptr = simulator.output<std::byte>(batch * p.value_dim * element_size(dtype), "out");
  require(launch_retention_step(p, cluster, nullptr) == cudaSuccess, "step: launch");
  return finish(simulator, "step");
}

std::string step(DType dtype, int cluster) {
  const simt::LaunchCounters before = run_step(dtype, cluster, 1);
  const simt::LaunchCounters after = run_step(dtype, cluster, 3);
  const auto per_row = [](uint64_t x, uint64_t y) { return static_cast<double>(y - x) / 2; };
  const simt::Counters &a = before.total, &b = after.total;
  const Object counted =
      Object()
          .number("memory_bytes", per_row(before.unique_read_bytes + before.unique_written_bytes,
                                          after.unique_read_bytes + after.unique_written_bytes))
          .number("l2_loaded", per_row(a.global_load.sector_bytes, b.global_load.sector_bytes))
          .number("l2_stored", per_row(a.global_store.sector_bytes, b.global_store.sector_bytes))
          .number("barriers", per_row(a.barriers, b.barriers) / cluster)
          .number("conflicts", static_cast<double>(b.bank_conflicts()));
  return Object()
      .text("dtype", name(dtype))
      .number("cluster", cluster)
      .raw("counted", counted.str())
      .raw("header",
           Object()
               .number("memory_bytes", static_cast<double>(step_memory_bytes(dtype, 256, 512)))
               .number("barriers", kStepBarriers)
               .str())
      .str();
}

/// The batch with the least share of all that a goal is for.
std::string step_goal(const StepGoal& goal, const ModelDevice& device) {
  RetentionStepParams p;
  p.heads = goal.heads;
  p.key_dim = goal.key_dim;
  p.value_dim = goal.value_dim;
  p.dtype = goal.dtype;
  const auto time = [&](int64_t batch, int& cluster) {
    p.batch = batch;
    cluster = retention_step_cluster(p, device.limits);
    return step_time(p, cluster, device.limits.multiprocessors, device.memory_tbps);
  };
  int cluster = 0;
  int64_t worst = goal.batch;
  for (int64_t batch = worst; batch <= 8 * goal.batch; ++batch) {
    if (time(batch, cluster).share() < time(worst, cluster).share()) worst = batch;
  }
  const StepTime found = time(worst, cluster);
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
  ChunkwiseParams p = one_sequence(goal.dtype, goal.heads, goal.inner, goal.outer);
  p.tokens = goal.tokens;
  const ChunkwisePlan plan = chunkwise_plan(p, device.limits, 0, false);
  require(plan.refusal == nullptr && plan.segment_length == 0, "a goal is not for whole sequences");
  const ChunkwiseTile& tile = kChunkwiseTiles[plan.tile];
  return describe("chunkwise", goal, device, plan.tile, plan.rows * goal.heads * plan.slices,
                  chunkwise_l2_bytes(tile, goal.inner, goal.outer),
                  chunkwise_memory_bytes(goal.inner, goal.outer));
}

int print() {
  std::vector<std::string> chunkwise_items, norm_items, rotary_items, step_items, devices;
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const int cluster : {1, 8}) step_items.push_back(step(dtype, cluster));
  }
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (int tile = 0; tile < kChunkwiseTileCount; ++tile) {
      chunkwise_items.push_back(chunkwise(dtype, tile));
    }
  }
  for (const bool backward : {false, true}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const int64_t value_dim : {128, 256, 428, 432, 512}) {
        norm_items.push_back(norm(dtype, backward, value_dim));
      }
    }
  }
  for (const bool half : {false, true}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      rotary_items.push_back(rotary(dtype, half));
    }
  }
  for (const ModelDevice& device : kModelDevices) devices.push_back(describe(device).str());
  std::vector<std::string> goals = for_each_goal(kChunkwiseGoals, goal);
  for (std::string& item : log_decay_goals()) goals.push_back(std::move(item));
  // Architectures of less shared memory than the kernels' first tiles need; kShared86 names them.
  const auto small = static_cast<double>(kShared86);
  const Object limits = Object().number("86", small).number("89", small).number("120", small);
  std::printf("%s\n", Object()
                          .raw("chunkwise", list(chunkwise_items))
                          .raw("log_decay", list(log_decay_counts()))
                          .raw("gated_group_norm", list(norm_items))
                          .raw("rotary", list(rotary_items))
                          .raw("devices", list(devices))
                          .raw("goals", list(goals))
                          .raw("step", list(step_items))
                          .raw("step_goals", list(for_each_goal(kStepGoals, step_goal)))
                          .raw("shared_limits", limits.str())
                          .number("min_capability", kChunkwiseMinCapability)
                          .str()
                          .c_str());
  return 0;
}

}  // namespace
}  // namespace retnet::kernels::cuda

int main() { return retnet::kernels::cuda::print(); }
