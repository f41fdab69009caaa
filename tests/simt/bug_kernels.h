// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime_api.h>

#include <span>
#include <vector>

#include "simt/report.h"

namespace retnet::simt {

// A small kernel, correct or with one bug injected. It runs as kBugBlocks blocks of kBugThreads
// threads. `in` and `out` hold one float for each thread.
inline constexpr int kBugBlocks = 2;
inline constexpr int kBugThreads = 64;

struct BugCase {
  const char* name;
  FindingKind expected;
  cudaError_t (*launch)(bool bug, const float* in, float* out);
};

std::vector<BugCase> bug_cases();
std::span<const BugCase> cluster_bug_cases();  // among them

}  // namespace retnet::simt
