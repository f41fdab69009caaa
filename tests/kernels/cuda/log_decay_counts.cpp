// SPDX-License-Identifier: Apache-2.0
//
// The part of kernel_counts that is about the kernel of log_decay's gradient.
#include "kernel_counts.h"
#include "kernels/cuda/retention/log_decay_grad/cost_model.h"
#include "kernels/cuda/retention/log_decay_grad/launch.h"

namespace retnet::kernels::cuda {
namespace {

/// Two slices, so that L2 and device memory differ.
ChunkwiseParams log_decay_params(DType dtype, const LogDecayTile& tile) {
  return one_sequence(dtype, 2, tile.inner, 2 * tile.slice);
}

simt::LaunchCounters run_log_decay(DType dtype, int index, int64_t tokens) {
  const std::string what = "log_decay " + std::to_string(index);
  const LogDecayTile& tile = kLogDecayTiles[index];
  // The tile of short chunks is for devices of little shared memory.
  const size_t shared = tile.shared_bytes() <= kShared86 ? kShared86 : kShared80;
  simt::Options options;
  options.shared_limit = shared;
  simt::Simulator simulator(options);
  ChunkwiseParams p = log_decay_params(dtype, tile);
  p.tokens = tokens;
  set_inputs(simulator, p);
  ChunkwiseGradients gradients;
  gradients.out = operand_of_zeros(simulator, p, p.outer, "grad_out");
  const LogDecayPlan plan = log_decay_plan(p, {kChunkwiseMinCapability, 1, shared});
  require(plan.tile == index, what + ": the plan takes another tile");
  gradients.log_decay_ptr = simulator.output<double>(p.heads * plan.slices, "parts");
  require(launch_log_decay(p, gradients, plan, nullptr) == cudaSuccess, what + ": launch");
  return finish(simulator, what);
}

std::string count(DType dtype, int index) {
  const LogDecayTile& tile = kLogDecayTiles[index];
  const ChunkwiseParams p = log_decay_params(dtype, tile);
  constexpr int kShort = 3, kLong = 5;  // chunks
  const Object counted = per_chunk(run_log_decay(dtype, index, kShort * tile.chunk),
                                   run_log_decay(dtype, index, kLong * tile.chunk), kLong - kShort,
                                   p.heads * tile.chunk);
  const LogDecayWavefronts wavefronts = log_decay_wavefronts(tile);
  Object header;
  header.number("mma", log_decay_mma(tile).total())
      .number("wavefronts", wavefronts.total())
      .number("ldmatrix", wavefronts.ldmatrix())
      .number("cp_async", wavefronts.copies)
      .number("stores", 0)
      .number("loads", wavefronts.weights)
      .number("barriers", kLogDecayBarriers)
      .number("l2_bytes", static_cast<double>(log_decay_l2_bytes(tile, p.inner, p.outer)))
      .number("memory_bytes", static_cast<double>(log_decay_memory_bytes(p.inner, p.outer)))
      .number("others_per_mma", log_decay_max_others_per_mma(tile));
  std::string turns;
  for (const int n : log_decay_turns(tile)) {
    if (n > 0) turns += (turns.empty() ? "" : ", ") + std::to_string(n);
  }
  return instantiation("log_decay", dtype, index, tile, "[" + turns + "]", counted, header);
}

std::string goal(const ChunkwiseGoal& goal, const ModelDevice& device) {
  ChunkwiseParams p = one_sequence(goal.dtype, goal.heads, goal.inner, goal.outer);
  p.tokens = goal.tokens;
  const LogDecayPlan plan = log_decay_plan(p, device.limits);
  require(plan.refusal == nullptr, "a goal is for what the kernel takes");
  return describe("log_decay", goal, device, plan.tile, goal.heads * plan.slices,
                  log_decay_l2_bytes(kLogDecayTiles[plan.tile], goal.inner, goal.outer),
                  log_decay_memory_bytes(goal.inner, goal.outer));
}

}  // namespace

std::vector<std::string> log_decay_counts() {
  std::vector<std::string> items;
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (int tile = 0; tile < kLogDecayTileCount; ++tile) items.push_back(count(dtype, tile));
  }
  return items;
}

std::vector<std::string> log_decay_goals() { return for_each_goal(kLogDecayGoals, goal); }

}  // namespace retnet::kernels::cuda
