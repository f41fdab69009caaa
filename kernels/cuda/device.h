// SPDX-License-Identifier: Apache-2.0
//
// What plans and cost models know of a device. This file is plain C++ and needs no CUDA header.
#pragma once

#include <cstddef>

namespace retnet::kernels::cuda {

// What a plan depends on.
struct DeviceLimits {
  int capability = 0;  // major * 10 + minor
  int multiprocessors = 0;
  size_t shared_bytes = 0;  // the most that a block may have
};

// Shared memory that a block may have at compute capability 8.0, 8.6 (also 8.9 and 12.0) and 9.0.
inline constexpr size_t kShared80 = 163 << 10, kShared86 = 99 << 10, kShared90 = 227 << 10;

// A device of the cost models. A model takes the time of the slowest resource, as if each resource were
// alone.
struct ModelDevice {
  const char* name;
  const char* architecture;  // of its code
  DeviceLimits limits;
  double clock_ghz;
  double mma_per_cycle;         // of a multiprocessor
  double wavefronts_per_cycle;  // of a multiprocessor: 128 bytes a cycle, published
  double issue_per_cycle;       // of a multiprocessor: 4 schedulers, published
  double l2_tbps;
  double memory_tbps;  // published
  double memory_latency_ns;
};
// - H100 SXM, published: it has 132 multiprocessors of 2,048 dense 16-bit FMA a cycle, and 3.35 TB/s. One
//   mma has 2,048 FMA. Estimated: mma.sync reaches 62% of them (others have measured it; the rest needs
//   wgmma), which is 588 TFLOP/s. The clock is 1.755 GHz under load (boost 1.98). L2 has 5.5 TB/s.
// - A100 SXM 80 GB, published: it has 108 multiprocessors of 1,024, 1.41 GHz and 2.04 TB/s. Estimated: L2
//   has 4.5 TB/s.
// - An unloaded access takes about 470 cycles, some 0.3 us, as others have measured. The models take three
//   times that under load.
inline constexpr ModelDevice kModelDevices[] = {
    {"H100", "90a", {90, 132, kShared90}, 1.755, 0.62, 1, 4, 5.5, 3.35, 1000},
    {"A100", "80", {80, 108, kShared80}, 1.41, 0.5, 1, 4, 4.5, 2.04, 1000},
};

}  // namespace retnet::kernels::cuda
