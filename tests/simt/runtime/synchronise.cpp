// SPDX-License-Identifier: Apache-2.0
//
// Barriers and warp-wide instructions: the lanes that wait for each other, and what a barrier makes
// known.
#include <algorithm>

#include "simt/runtime/block.h"

namespace retnet::simt {

void Block::Joined::add(Lane& lane) {
  if (std::find(clocks_.begin(), clocks_.end(), lane.clocks) == clocks_.end()) {
    clocks_.push_back(lane.clocks);
  }
  own_.emplace_back(lane.thread, lane.clock++);
}

Clocks Block::Joined::result(size_t threads) const {
  auto joined = std::make_shared<std::vector<uint32_t>>(threads);
  for (const Clocks& clocks : clocks_) {
    for (size_t t = 0; t < threads; ++t) (*joined)[t] = std::max((*joined)[t], (*clocks)[t]);
  }
  for (const auto& [thread, clock] : own_) (*joined)[thread] = std::max((*joined)[thread], clock);
  return joined;
}

void Block::barrier(Lane& lane, int id, int threads, bool wait, Pc pc) {
  const bool whole_block = threads < 0;
  const int expected = whole_block ? static_cast<int>(lanes_.size()) : threads;
  if (id < 0 || id > 15 || expected <= 0 || expected > static_cast<int>(lanes_.size()) ||
      (!whole_block && expected % 32 != 0)) {
    findings_.add(FindingKind::kBadBarrier, place_of(lane), pc, 0,
                  [&] { return format("barrier %d of %d threads", id, expected); });
    abandon(lane);
  }
  Barrier& barrier = barriers_[id];
  if (barrier.arrived == 0) {
    barrier.expected = expected;
    barrier.pc = pc;
    barrier.warp_pc.assign(warps_.size(), 0);
  } else if (barrier.expected != expected) {
    findings_.add(FindingKind::kBadBarrier, place_of(lane), pc, barrier.pc, [&] {
      return format("barrier %d of %d threads, of %d where others arrived", id, expected,
                    barrier.expected);
    });
    abandon(lane);
  }
  // Different warps may reach a named barrier at different places, but the lanes of a warp may not.
  Pc& warp_pc = barrier.warp_pc[lane.warp];
  if (warp_pc == 0) warp_pc = pc;
  const Pc other = whole_block ? barrier.pc : warp_pc;
  if (!same_instruction(pc, other)) {
    findings_.add(FindingKind::kDivergentBarrier, place_of(lane), pc, other, [&] {
      return format("threads of one %s meet at barrier %d in different places",
                    whole_block ? "block" : "warp", id);
    });
  }

  ++barrier.arrived;
  barrier.joined.add(lane);
  if (wait) barrier.waiting.push_back(&lane);
  if (barrier.arrived < barrier.expected) {
    if (wait) suspend(lane, LaneState::kAtBarrier, whole_block ? "sync_block" : "bar_sync", id, pc);
    return;
  }
  release(barrier);
}

void Block::release(Barrier& barrier) {
  ++counters_.barriers;
  const Clocks joined = barrier.joined.result(clocks());
  for (Lane* waiting : barrier.waiting) {
    waiting->learn(joined);
    waiting->state = LaneState::kReady;
    // All lanes of the warp are here, so what they do next is warp-wide again.
    if (waiting->lane == 0) warps_[waiting->warp].log.flush(counters_);
  }
  barrier = {};
}

void Block::cluster_barrier(Lane& lane, Pc pc) {
  Barrier& barrier = cluster_barrier_;
  if (barrier.arrived == 0) {
    barrier.pc = pc;
  } else if (!same_instruction(pc, barrier.pc)) {
    findings_.add(FindingKind::kDivergentBarrier, place_of(lane), pc, barrier.pc, [] {
      return std::string("threads of one block meet at the cluster's barrier in different places");
    });
  }
  ++barrier.arrived;
  barrier.joined.add(lane);
  barrier.waiting.push_back(&lane);
  if (!cluster_.leave_barrier()) suspend(lane, LaneState::kAtBarrier, "sync_cluster", 0, pc);
}

void Block::leave_cluster_barrier() {
  cluster_barrier_.joined.add(remote_);
  remote_.learn(cluster_barrier_.joined.result(clocks()));
  release(cluster_barrier_);
}

void Block::collective(Lane& lane, const char* instruction, const void* argument, Pc pc,
                       Action act) {
  Warp& warp = warps_[lane.warp];
  if (warp.arrived == 0) {
    warp.instruction = instruction;
    warp.pc = pc;
  } else if (warp.instruction != instruction || !same_instruction(warp.pc, pc)) {
    findings_.add(FindingKind::kDivergentCollective, place_of(lane), pc, warp.pc, [&] {
      return format("%s, where other lanes of the warp wait at %s", instruction, warp.instruction);
    });
    abandon(lane);
  }
  const std::span<Lane> lanes = std::span(lanes_).subspan(
      lane.warp * 32, std::min<size_t>(32, lanes_.size() - lane.warp * 32));
  lane.argument = argument;
  warp.arrived |= 1u << lane.lane;
  if (warp.arrived != UINT32_MAX >> (32 - lanes.size())) {
    suspend(lane, LaneState::kAtCollective, instruction, 0, pc);
    return;
  }
  warp.arrived = 0;
  warp.log.flush(counters_);
  act(*this, lanes, pc);
  for (Lane& other : lanes) other.state = LaneState::kReady;
}

void Block::order_warp(std::span<Lane> warp) {
  Joined joined;
  for (Lane& lane : warp) joined.add(lane);
  const Clocks result = joined.result(clocks());
  for (Lane& lane : warp) lane.learn(result);
}

}  // namespace retnet::simt
