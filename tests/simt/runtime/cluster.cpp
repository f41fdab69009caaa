// SPDX-License-Identifier: Apache-2.0
#include "simt/runtime/cluster.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "simt/runtime/block.h"

namespace retnet::simt {

Cluster::Cluster(const LaunchContext& launch) : launch_(launch) {
  static thread_local std::vector<std::unique_ptr<Stacks>> stacks;  // kept from launch to launch
  while (stacks.size() < launch.shape.cluster) stacks.push_back(std::make_unique<Stacks>());
  for (unsigned rank = 0; rank < launch.shape.cluster; ++rank) {
    blocks_.push_back(
        std::make_unique<Block>(launch, *this, static_cast<int>(rank), *stacks[rank]));
  }
}

Cluster::~Cluster() = default;

size_t Cluster::static_bytes() const {
  size_t most = 0;
  for (const auto& block : blocks_) most = std::max(most, block->shared().static_bytes());
  return most;
}

void Cluster::run(uint32_t first, std::vector<Counters>& counters) {
  barriers_ = 0;
  stored_ = 0;
  std::vector<uint32_t> order(blocks_.size());
  std::iota(order.begin(), order.end(), 0);
  const Options& options = launch_.options;
  if (options.order == Order::kDescending) std::reverse(order.begin(), order.end());
  std::mt19937_64 random(options.seed * 1000003 + first);
  for (const uint32_t rank : order) blocks_[rank]->start(first + rank);
  for (bool progress = true; progress;) {
    progress = false;
    if (options.order == Order::kRandom) std::shuffle(order.begin(), order.end(), random);
    for (const uint32_t rank : order) progress |= blocks_[rank]->advance();
  }
  for (uint32_t rank = 0; rank < blocks_.size(); ++rank) {
    blocks_[rank]->end();
    counters[first + rank] = blocks_[rank]->counters();
  }
  if (stored_ != 0) {
    launch_.findings.add(FindingKind::kClusterAbsent, stored_by_, stored_, 0, [] {
      return std::string(
          "store into another block with no barrier of the cluster after it: that "
          "block may have ended");
    });
  }
}

bool Cluster::leave_barrier() {
  const auto arrived = [](const auto& block) { return block->all_at_cluster_barrier(); };
  if (!std::all_of(blocks_.begin(), blocks_.end(), arrived)) return false;
  for (const auto& block : blocks_) block->leave_cluster_barrier();
  ++barriers_;
  stored_ = 0;
  return true;
}

void Cluster::store(Lane& lane, const void* shared, int rank, float value, Pc pc) {
  Block& own = *lane.block;
  const auto refuse = [&](FindingKind kind, const std::string& detail) {
    launch_.findings.add(kind, place_of(lane), pc, 0, [&] { return detail; });
    own.abandon(lane);
  };
  if (rank < 0 || rank >= static_cast<int>(blocks_.size())) {
    refuse(FindingKind::kClusterAbsent,
           format("block %d of a cluster of %zu", rank, blocks_.size()));
  }
  const auto address = reinterpret_cast<uintptr_t>(shared);
  if (!own.shared().contains(address)) {
    refuse(FindingKind::kSharedOutOfBounds, "store into another block from no shared address");
  }
  if (rank != own.rank()) {
    if (barriers_ == 0) {
      launch_.findings.add(FindingKind::kClusterAbsent, place_of(lane), pc, 0, [&] {
        return format(
            "store into block %d with no barrier of the cluster before it: that block "
            "may not have started",
            rank);
      });
    }
    stored_ = pc;
    stored_by_ = place_of(lane);
  }
  Block& target = *blocks_[rank];
  const uint32_t offset = own.shared().offset(address);
  if (!target.shared().check_bounds(lane, offset, 4, pc, "store into another block")) return;
  // If a block stores into its own memory this way, the value is also seen after a barrier of the
  // cluster.
  target.shared().write(target.remote(), offset, 4, pc);
  std::memcpy(target.shared().at(offset), &value, 4);
}

}  // namespace retnet::simt
