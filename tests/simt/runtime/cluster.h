// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "simt/runtime/findings.h"
#include "simt/runtime/lane.h"

namespace retnet::simt {

class Block;
struct Counters;
struct LaunchContext;

// Runs clusters one after the other. The blocks of a cluster alternate on this OS thread, and each
// runs as far as it can before the next one. Without clusters, each cluster has one block.
class Cluster {
 public:
  explicit Cluster(const LaunchContext& launch);
  ~Cluster();

  // Runs the blocks from `first` on. Their counts go to `counters` at their index.
  void run(uint32_t first, std::vector<Counters>& counters);
  size_t static_bytes() const;

  // The rest is for what runs on behalf of a lane.
  // If all lanes of all blocks have arrived, all continue. Returns whether they do.
  bool leave_barrier();
  // Stores into block `rank`, at the place where this block has `shared`.
  void store(Lane& lane, const void* shared, int rank, float value, Pc pc);

 private:
  const LaunchContext& launch_;
  std::vector<std::unique_ptr<Block>> blocks_;
  uint64_t barriers_ = 0;  // completed
  Pc stored_ = 0;          // of a store since the last one, or 0
  Place stored_by_{};
};

}  // namespace retnet::simt
