// SPDX-License-Identifier: Apache-2.0
//
// The cost of a decode step by formula, a model of its time, and the number of blocks that share a head
// (decode_step_cluster), which follows from the model. tests/kernels/cuda/kernel_counts.cpp counts the same
// bytes in the SIMT emulator, and tools/step_report.py compares the two. This file is plain C++ for the
// host.
#pragma once

#include "kernels/cuda/device.h"
#include "kernels/cuda/retention/decode_step/plan.h"

namespace retnet::kernels::cuda {

// Bytes of device memory of a batch entry and head. The state in float32 is read and written once. q, k, v,
// gate and out are added. What all batch entries share (weight, bias, frequencies, log_decay) comes from
// L2.
constexpr int64_t decode_step_state_bytes(int64_t head_dim_qk, int64_t head_dim_v) {
  return 2 * 4 * head_dim_qk * head_dim_v;
}
constexpr int64_t decode_step_memory_bytes(DType dtype, int64_t head_dim_qk, int64_t head_dim_v) {
  return decode_step_state_bytes(head_dim_qk, head_dim_v) +
         element_size(dtype) * (2 * head_dim_qk + 3 * head_dim_v);
}

inline constexpr int kDecodeStepBarriers = 3;  // of a block, including those of its cluster
// Each barrier of the cluster adds a fence of the device and an invalidation of a cache to the code.
inline constexpr int kDecodeStepFences = 2;

// The number of turns of 8 loads for which a thread of a block waits, one after the other.
constexpr int64_t decode_step_turns(int64_t head_dim_qk, int64_t head_dim_v, int cluster) {
  constexpr int64_t kRows = kDecodeStepLoads * kDecodeStepRows;
  return decode_step_columns(head_dim_v, cluster) / kDecodeStepUnit *
         ((head_dim_qk + kRows - 1) / kRows);
}

// These are estimates, from published measurements of single accesses and copies:
// - A stream that reads as much as it writes reaches this share of the bandwidth of a device.
// - A load from device memory takes these nanoseconds while the memory is busy.
// - What a block does besides its state takes these nanoseconds. Before the state come a slot, q, k and the
//   angles (two loads in turn, two barriers), and after it two barriers and a store.
inline constexpr double kDecodeStepStreamShare = 0.9;
inline constexpr double kDecodeStepLatencyNs = kModelDevices[0].memory_latency_ns;
inline constexpr double kDecodeStepAroundNs = 3000;

struct DecodeStepTime {
  double peak_ns;     // bytes / published bandwidth
  double memory_ns;   // peak_ns / kDecodeStepStreamShare
  double latency_ns;  // rounds (turns kDecodeStepLatencyNs + kDecodeStepAroundNs) - around_ns
  double around_ns;   // kDecodeStepAroundNs: before the first states and after the last ones
  double tail_ns;     // (share of the last round that is empty) times the time of a block
  constexpr double total() const {
    return (memory_ns > latency_ns ? memory_ns : latency_ns) + around_ns + tail_ns;
  }
  constexpr double share() const { return peak_ns / total(); }  // of the published bandwidth
};
constexpr DecodeStepTime decode_step_time(const DecodeStepParams& p, int cluster,
                                          int multiprocessors, double memory_tbps) {
  const int64_t blocks = p.batch * p.heads * cluster;
  const int64_t slots = int64_t{multiprocessors} * kDecodeStepOccupancy;
  const int64_t rounds = (blocks + slots - 1) / slots;
  const auto turns = static_cast<double>(decode_step_turns(p.head_dim_qk, p.head_dim_v, cluster));
  const double block_ns = turns * kDecodeStepLatencyNs + kDecodeStepAroundNs;
  const double empty = static_cast<double>(rounds * slots - blocks) / static_cast<double>(slots);
  const int64_t bytes =
      p.batch * p.heads * decode_step_memory_bytes(p.dtype, p.head_dim_qk, p.head_dim_v);
  const double peak_ns = static_cast<double>(bytes) / memory_tbps / 1000;
  return {peak_ns, peak_ns / kDecodeStepStreamShare,
          static_cast<double>(rounds) * block_ns - kDecodeStepAroundNs, kDecodeStepAroundNs,
          rounds > 1 ? empty * block_ns : 0};
}

// Returns the number of blocks that share a head. Of 1, 2, 4 and 8 it is the one with which the model takes
// least time, if a multiprocessor has as much bandwidth as one of an H100. The result of the kernel does
// not depend on it.
constexpr int decode_step_cluster(const DecodeStepParams& p, const DeviceLimits& device) {
  if (device.capability < kDecodeStepClusterCapability || device.multiprocessors < 1) return 1;
  const ModelDevice& nominal = kModelDevices[0];
  const double memory_tbps =
      nominal.memory_tbps * device.multiprocessors / nominal.limits.multiprocessors;
  const auto time = [&](int cluster) {
    return decode_step_time(p, cluster, device.multiprocessors, memory_tbps).total();
  };
  int best = 1;
  for (int cluster = 2; cluster <= kDecodeStepMaxCluster; cluster *= 2) {
    if (!decode_step_cluster_fits(p.head_dim_v, cluster)) continue;
    if (time(cluster) < time(best)) best = cluster;
  }
  return best;
}

// A goal is a share of the published bandwidth of a device. The model must reach it for every batch size
// from `batch` to eight times that.
struct DecodeStepGoal {
  const char* device;
  DType dtype;
  int64_t batch, heads, head_dim_qk, head_dim_v;
  double share;
};
// The heads of 1.3B, 2.7B, 6.7B and 13B.
inline constexpr DecodeStepGoal kDecodeStepGoals[] = {
    {"H100", DType::kBFloat16, 16, 8, 256, 512, 0.8},
    {"H100", DType::kBFloat16, 16, 10, 256, 512, 0.8},
    {"H100", DType::kBFloat16, 16, 16, 256, 512, 0.8},
    {"H100", DType::kBFloat16, 16, 20, 256, 512, 0.8},
};

// By hand, for Dk = 256, Dv = 512 in bfloat16.
static_assert(decode_step_state_bytes(256, 512) == 1048576);
static_assert(decode_step_memory_bytes(DType::kBFloat16, 256, 512) == 1048576 + 4096);
static_assert(decode_step_turns(256, 512, 1) == 16 && decode_step_turns(256, 512, 8) == 2);

}  // namespace retnet::kernels::cuda
