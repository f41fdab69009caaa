// SPDX-License-Identifier: Apache-2.0
//
// The part of kernel_counts that is about the log_decay gradient kernel.
#include "kernel_counts.h"
#include "kernels/cuda/retention/grad_log_decay/cost_model.h"
#include "kernels/cuda/retention/grad_log_decay/launch.h"

namespace retnet::kernels::cuda {
namespace {

/// There are two slices, so that L2 and device memory differ.
ChunkwiseParams grad_log_decay_params(DType dtype, const GradLogDecayTile& tile) {
  return one_sequence(dtype, 2, tile.head_dim_qk, 2 * tile.slice);
}

simt::LaunchCounters run_grad_log_decay(DType dtype, int index, int64_t tokens) {
  const std::string what = "grad_log_decay " + std::to_string(index);
  const GradLogDecayTile& tile = kGradLogDecayTiles[index];
  // The tile of short chunks is for devices with little shared memory.
  const size_t shared = tile.shared_bytes() <= kShared86 ? kShared86 : kShared80;
  simt::Options options;
  options.shared_limit = shared;
  simt::Simulator simulator(options);
  ChunkwiseParams p = grad_log_decay_params(dtype, tile);
  p.tokens = tokens;
  set_inputs(simulator, p);
  ChunkwiseGradients gradients;
  gradients.grad_out = operand_of_zeros(simulator, p, p.head_dim_v, "grad_out");
  const GradLogDecayPlan plan = grad_log_decay_plan(p, {kChunkwiseMinCapability, 1, shared});
  require(plan.tile == index, what + ": the plan takes another tile");
  gradients.grad_log_decay_ptr = simulator.output<double>(p.heads * plan.slices, "parts");
  require(launch_grad_log_decay({p, gradients}, plan, nullptr) == cudaSuccess, what + ": launch");
  return finish(simulator, what);
}

std::string count(DType dtype, int index) {
  const GradLogDecayTile& tile = kGradLogDecayTiles[index];
  const ChunkwiseParams p = grad_log_decay_params(dtype, tile);
  constexpr int kShort = 3, kLong = 5;  // chunks
  const Object counted = per_chunk(run_grad_log_decay(dtype, index, kShort * tile.chunk),
                                   run_grad_log_decay(dtype, index, kLong * tile.chunk),
                                   kLong - kShort, p.heads * tile.chunk);
  const GradLogDecayWavefronts wavefronts = grad_log_decay_wavefronts(tile);
  Object header;
  header.number("mma", grad_log_decay_mma(tile).total())
      .number("wavefronts", wavefronts.total())
      .number("ldmatrix", wavefronts.ldmatrix())
      .number("cp_async", wavefronts.copies)
      .number("stores", 0)
      .number("loads", wavefronts.weights)
      .number("barriers", kGradLogDecayBarriers)
      .number("l2_bytes",
              static_cast<double>(grad_log_decay_l2_bytes(tile, p.head_dim_qk, p.head_dim_v)))
      .number("memory_bytes",
              static_cast<double>(grad_log_decay_memory_bytes(p.head_dim_qk, p.head_dim_v)))
      .number("others_per_mma", grad_log_decay_max_others_per_mma(tile));
  std::string turns;
  for (const int n : grad_log_decay_turns(tile)) {
    if (n > 0) turns += (turns.empty() ? "" : ", ") + std::to_string(n);
  }
  return instantiation("grad_log_decay", dtype, index, tile, "[" + turns + "]",
                       {describe(grad_log_decay_interval(tile))}, counted, header);
}

std::string goal(const ChunkwiseGoal& goal, const ModelDevice& device) {
  ChunkwiseParams p = one_sequence(goal.dtype, goal.heads, goal.head_dim_qk, goal.head_dim_v);
  p.tokens = goal.tokens;
  const GradLogDecayPlan plan = grad_log_decay_plan(p, device.limits);
  require(plan.unsupported_reason == nullptr, "a goal is for what the kernel takes");
  return describe(
      "grad_log_decay", goal, device, plan.tile, goal.heads * plan.slices,
      grad_log_decay_l2_bytes(kGradLogDecayTiles[plan.tile], goal.head_dim_qk, goal.head_dim_v),
      grad_log_decay_memory_bytes(goal.head_dim_qk, goal.head_dim_v));
}

}  // namespace

std::vector<std::string> grad_log_decay_counts() {
  std::vector<std::string> items;
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (int tile = 0; tile < kGradLogDecayTileCount; ++tile) items.push_back(count(dtype, tile));
  }
  return items;
}

std::vector<std::string> grad_log_decay_goals() { return for_each_goal(kGradLogDecayGoals, goal); }

}  // namespace retnet::kernels::cuda
