// SPDX-License-Identifier: Apache-2.0
//
// The part of kernel_counts that is about the log_decay gradient kernel.
#include "kernel_counts.h"
#include "kernels/cuda/retention/log_decay_grad/cost_model.h"
#include "kernels/cuda/retention/log_decay_grad/launch.h"

namespace retnet::kernels::cuda {
namespace {

/// There are two slices, so that L2 and device memory differ.
ChunkwiseParams log_decay_grad_params(DType dtype, const LogDecayGradTile& tile) {
  return one_sequence(dtype, 2, tile.head_dim_qk, 2 * tile.slice);
}

simt::LaunchCounters run_log_decay_grad(DType dtype, int index, int64_t tokens) {
  const std::string what = "log_decay_grad " + std::to_string(index);
  const LogDecayGradTile& tile = kLogDecayGradTiles[index];
  // The tile of short chunks is for devices with little shared memory.
  const size_t shared = tile.shared_bytes() <= kShared86 ? kShared86 : kShared80;
  simt::Options options;
  options.shared_limit = shared;
  simt::Simulator simulator(options);
  ChunkwiseParams p = log_decay_grad_params(dtype, tile);
  p.tokens = tokens;
  set_inputs(simulator, p);
  ChunkwiseGradients gradients;
  gradients.grad_out = operand_of_zeros(simulator, p, p.head_dim_v, "grad_out");
  const LogDecayGradPlan plan = log_decay_grad_plan(p, {kChunkwiseMinCapability, 1, shared});
  require(plan.tile == index, what + ": the plan takes another tile");
  gradients.log_decay_grad_ptr = simulator.output<double>(p.heads * plan.slices, "parts");
  require(launch_log_decay_grad({p, gradients}, plan, nullptr) == cudaSuccess, what + ": launch");
  return finish(simulator, what);
}

std::string count(DType dtype, int index) {
  const LogDecayGradTile& tile = kLogDecayGradTiles[index];
  const ChunkwiseParams p = log_decay_grad_params(dtype, tile);
  constexpr int kShort = 3, kLong = 5;  // chunks
  const Object counted = per_chunk(run_log_decay_grad(dtype, index, kShort * tile.chunk),
                                   run_log_decay_grad(dtype, index, kLong * tile.chunk),
                                   kLong - kShort, p.heads * tile.chunk);
  const LogDecayGradWavefronts wavefronts = log_decay_grad_wavefronts(tile);
  Object header;
  header.number("mma", log_decay_grad_mma(tile).total())
      .number("wavefronts", wavefronts.total())
      .number("ldmatrix", wavefronts.ldmatrix())
      .number("cp_async", wavefronts.copies)
      .number("stores", 0)
      .number("loads", wavefronts.weights)
      .number("barriers", kLogDecayGradBarriers)
      .number("l2_bytes",
              static_cast<double>(log_decay_grad_l2_bytes(tile, p.head_dim_qk, p.head_dim_v)))
      .number("memory_bytes",
              static_cast<double>(log_decay_grad_memory_bytes(p.head_dim_qk, p.head_dim_v)))
      .number("others_per_mma", log_decay_grad_max_others_per_mma(tile));
  std::string turns;
  for (const int n : log_decay_grad_turns(tile)) {
    if (n > 0) turns += (turns.empty() ? "" : ", ") + std::to_string(n);
  }
  return instantiation("log_decay_grad", dtype, index, tile, "[" + turns + "]", counted, header);
}

std::string goal(const ChunkwiseGoal& goal, const ModelDevice& device) {
  ChunkwiseParams p = one_sequence(goal.dtype, goal.heads, goal.head_dim_qk, goal.head_dim_v);
  p.tokens = goal.tokens;
  const LogDecayGradPlan plan = log_decay_grad_plan(p, device.limits);
  require(plan.unsupported_reason == nullptr, "a goal is for what the kernel takes");
  return describe(
      "log_decay_grad", goal, device, plan.tile, goal.heads * plan.slices,
      log_decay_grad_l2_bytes(kLogDecayGradTiles[plan.tile], goal.head_dim_qk, goal.head_dim_v),
      log_decay_grad_memory_bytes(goal.head_dim_qk, goal.head_dim_v));
}

}  // namespace

std::vector<std::string> log_decay_grad_counts() {
  std::vector<std::string> items;
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (int tile = 0; tile < kLogDecayGradTileCount; ++tile) items.push_back(count(dtype, tile));
  }
  return items;
}

std::vector<std::string> log_decay_grad_goals() { return for_each_goal(kLogDecayGradGoals, goal); }

}  // namespace retnet::kernels::cuda
