// SPDX-License-Identifier: Apache-2.0
//
// What a step of decoding costs, by formula, a model of its time, and how many blocks share a head by
// it. tests/kernels/cuda/kernel_counts.cpp
// counts the same bytes in the emulator and tools/step_report.py holds the two together. Plain C++, for
// the host.
#pragma once

#include "kernels/cuda/retention/chunkwise/cost_model.h"
#include "kernels/cuda/retention/step/plan.h"

namespace retnet::kernels::cuda {

// Bytes of device memory of a row and head: the state in fp32, read and written once; q, k, v, gate and
// out. What all rows share (weight, bias, frequencies, log_decay) comes from L2.
constexpr int64_t step_state_bytes(int64_t key_dim, int64_t value_dim) {
  return 2 * 4 * key_dim * value_dim;
}
constexpr int64_t step_memory_bytes(DType dtype, int64_t key_dim, int64_t value_dim) {
  return step_state_bytes(key_dim, value_dim) + element_size(dtype) * (2 * key_dim + 3 * value_dim);
}

inline constexpr int kStepBarriers = 3;  // of a block, those of its cluster among them

// Batches of 8 loads that a thread of a block waits for, one after the other.
constexpr int64_t step_turns(int64_t key_dim, int64_t value_dim, int cluster) {
  constexpr int64_t kRows = kStepBatch * kStepRows;
  return step_columns(value_dim, cluster) / kStepUnit * ((key_dim + kRows - 1) / kRows);
}

// Estimates, from published measurements of single accesses and copies: what a stream that reads as much
// as it writes reaches of a device's bandwidth; nanoseconds of a load from device memory while it is
// busy; and of what a block does beside its state: a slot, q, k and the angles before it (two loads in
// turn, two barriers), two barriers and a store after it.
inline constexpr double kStepStreamShare = 0.9;
inline constexpr double kStepLatencyNs = kModelDevices[0].memory_latency_ns;
inline constexpr double kStepAroundNs = 3000;

struct StepTime {
  double peak_ns;     // bytes at the device's published bandwidth
  double memory_ns;   // at what a stream reaches of it
  double latency_ns;  // what blocks wait for their loads, one block after the other
  double around_ns;   // of the first blocks before their state, and of the last ones after it
  double tail_ns;     // of a last round of blocks that fills the device in part
  constexpr double total() const {
    return (memory_ns > latency_ns ? memory_ns : latency_ns) + around_ns + tail_ns;
  }
  constexpr double share() const { return peak_ns / total(); }  // of the published bandwidth
};
constexpr StepTime step_time(const RetentionStepParams& p, int cluster, int multiprocessors,
                             double memory_tbps) {
  const int64_t blocks = p.batch * p.heads * cluster;
  const int64_t slots = int64_t{multiprocessors} * kStepOccupancy;
  const int64_t rounds = (blocks + slots - 1) / slots;
  const auto turns = static_cast<double>(step_turns(p.key_dim, p.value_dim, cluster));
  const double block_ns = turns * kStepLatencyNs + kStepAroundNs;
  const double empty = static_cast<double>(rounds * slots - blocks) / static_cast<double>(slots);
  const int64_t bytes = p.batch * p.heads * step_memory_bytes(p.dtype, p.key_dim, p.value_dim);
  const double peak_ns = static_cast<double>(bytes) / memory_tbps / 1000;
  return {peak_ns, peak_ns / kStepStreamShare,
          static_cast<double>(rounds) * block_ns - kStepAroundNs, kStepAroundNs,
          rounds > 1 ? empty * block_ns : 0};
}

// Blocks that share a head: 1, 2, 4 or 8, with which the model takes least time, if a multiprocessor has
// an H100's part of the bandwidth. The result of the kernel does not depend on it.
constexpr int retention_step_cluster(const RetentionStepParams& p, const DeviceLimits& device) {
  if (device.capability < kStepClusterCapability || device.multiprocessors < 1) return 1;
  const ModelDevice& nominal = kModelDevices[0];
  const double memory_tbps =
      nominal.memory_tbps * device.multiprocessors / nominal.limits.multiprocessors;
  const auto time = [&](int cluster) {
    return step_time(p, cluster, device.multiprocessors, memory_tbps).total();
  };
  int best = 1;
  for (int cluster = 2; cluster <= kStepMaxCluster; cluster *= 2) {
    if (step_cluster_fits(p.value_dim, cluster) && time(cluster) < time(best)) best = cluster;
  }
  return best;
}

// A goal: the share of a device's published bandwidth that the model must reach for every batch from
// `batch` to eight times that.
struct StepGoal {
  const char* device;
  DType dtype;
  int64_t batch, heads, key_dim, value_dim;
  double share;
};
// The heads of 1.3B, 2.7B, 6.7B and 13B.
inline constexpr StepGoal kStepGoals[] = {
    {"H100", DType::kBFloat16, 16, 8, 256, 512, 0.8},
    {"H100", DType::kBFloat16, 16, 10, 256, 512, 0.8},
    {"H100", DType::kBFloat16, 16, 16, 256, 512, 0.8},
    {"H100", DType::kBFloat16, 16, 20, 256, 512, 0.8},
};

// By hand, for K = 256, V = 512 in bf16.
static_assert(step_state_bytes(256, 512) == 1048576);
static_assert(step_memory_bytes(DType::kBFloat16, 256, 512) == 1048576 + 4096);
static_assert(step_turns(256, 512, 1) == 16 && step_turns(256, 512, 8) == 2);

}  // namespace retnet::kernels::cuda
