// SPDX-License-Identifier: Apache-2.0
//
// The scheduler of a block and the checks of plain memory accesses.
#include "simt/runtime/block.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <numeric>

namespace retnet::simt {

thread_local Lane* running_lane = nullptr;

Place place_of(const Lane& lane) { return {lane.block->linear_index(), lane.thread}; }

namespace {

uint3 unflatten(uint32_t linear, dim3 extents) {
  return {linear % extents.x, linear / extents.x % extents.y, linear / extents.x / extents.y};
}

}  // namespace

Block::Block(const LaunchContext& launch, Cluster& cluster, int rank, Stacks& stacks)
    : launch_(launch),
      cluster_(cluster),
      rank_(rank),
      findings_(launch.findings),
      stacks_(stacks),
      shared_(launch.shape.dynamic_shared, launch.threads(), launch.findings),
      lanes_(launch.threads()),
      warps_((launch.threads() + 31) / 32),
      warp_order_(warps_.size()) {
  stacks_.reserve(launch.threads(), launch.options.stack_bytes);
  for (int t = 0; t < launch.threads(); ++t) {
    Lane& lane = lanes_[t];
    lane.block = this;
    lane.thread = t;
    lane.warp = t / 32;
    lane.lane = t % 32;
    lane.index = unflatten(t, launch.shape.block);
    lane.stack = stacks_.bottom(t);
  }
  remote_.block = this;
  remote_.thread = launch.threads();
  std::iota(warp_order_.begin(), warp_order_.end(), 0);
  if (launch.options.order == Order::kDescending) {
    std::reverse(warp_order_.begin(), warp_order_.end());
  }
}

// The first frame of every fiber.
void Block::lane_main() {
  Lane& lane = *running_lane;
  lane.block->launch_.trampoline(lane.block->launch_.arguments);
  running_lane = nullptr;
  lane.block->finish_lane(lane);
  std::abort();  // nobody resumes a lane that is done
}

void Block::finish_lane(Lane& lane) {
  const auto has_copies = [](const auto& group) { return !group.empty(); };
  if (has_copies(lane.open) || std::any_of(lane.groups.begin(), lane.groups.end(), has_copies)) {
    const auto& group = has_copies(lane.open)
                            ? lane.open
                            : *std::find_if(lane.groups.begin(), lane.groups.end(), has_copies);
    findings_.add(FindingKind::kAsyncPendingAtExit, place_of(lane), group.front().pc, 0,
                  [] { return std::string("a copy that was never waited for"); });
  }
  --alive_;
  suspend(lane, LaneState::kDone, "", 0, 0);
}

void Block::start(uint32_t block) {
  block_ = block;
  index_ = unflatten(block, launch_.shape.grid);
  counters_ = {};
  abandoned_ = false;
  shared_.reset();
  barriers_ = {};
  cluster_barrier_ = {};
  random_.seed(launch_.options.seed * 1000003 + block);
  const auto nothing = std::make_shared<const std::vector<uint32_t>>(clocks());
  remote_.clock = 1;
  remote_.learn(nothing);
  for (Lane& lane : lanes_) {
    lane.state = LaneState::kReady;
    lane.clock = 1;
    lane.learn(nothing);
    lane.open.clear();
    lane.groups.clear();
    lane.stack_pointer = stacks_.prepare(lane.thread, &Block::lane_main);
  }
  alive_ = static_cast<int>(lanes_.size());
  for (Warp& warp : warps_) {
    warp.log.clear();
    warp.arrived = 0;
  }
}

void Block::resume(Lane& lane) {
  // A lane that waits does so inside the runtime, which then sets running_lane itself.
  running_lane = &lane;
  retnet_simt_switch(&scheduler_, lane.stack_pointer);
  running_lane = nullptr;
}

void Block::suspend(Lane& lane, LaneState state, const char* what, int id, Pc pc) {
  lane.state = state;
  lane.waits_at = what;
  lane.waits_id = id;
  lane.waits_pc = pc;
  retnet_simt_switch(&lane.stack_pointer, scheduler_);
  running_lane = nullptr;
}

void Block::abandon(Lane& lane) {
  abandoned_ = true;
  suspend(lane, LaneState::kDone, "", 0, 0);
  std::abort();
}

// Runs each lane that is ready once. Returns whether there was one.
bool Block::run_warp(int warp) {
  const int first = warp * 32;
  const int lanes = std::min<int>(32, static_cast<int>(lanes_.size()) - first);
  const Order order = launch_.options.order;
  const int turn = order == Order::kRandom ? static_cast<int>(random_() % 32) : 0;
  bool any = false;
  for (int i = 0; i < lanes && !abandoned_; ++i) {
    const int l = order == Order::kDescending ? lanes - 1 - i : (i + turn) % lanes;
    Lane& lane = lanes_[first + l];
    if (lane.state != LaneState::kReady) continue;
    any = true;
    resume(lane);
  }
  return any;
}

bool Block::advance() {
  bool any = false;
  while (alive_ > 0 && !abandoned_) {
    bool progress = false;
    if (launch_.options.order == Order::kRandom) {
      std::shuffle(warp_order_.begin(), warp_order_.end(), random_);
    }
    for (const int warp : warp_order_) {
      // A warp runs as far as it can before the next one. This is the largest skew, and it exposes a
      // missing barrier.
      while (!abandoned_ && run_warp(warp)) progress = true;
      if (abandoned_) break;
      if (launch_.options.order == Order::kRandom && progress && random_() % 4 == 0) break;
    }
    if (!progress) break;
    any = true;
  }
  return any;
}

void Block::end() {
  if (alive_ > 0 && !abandoned_) report_stuck();
  for (Warp& warp : warps_) warp.log.flush(counters_);
  if (abandoned_ || alive_ > 0) return;
  for (size_t id = 0; id < barriers_.size(); ++id) {
    if (barriers_[id].arrived == 0) continue;
    findings_.add(FindingKind::kUnmatchedBarrier, Place{block_, -1}, barriers_[id].pc, 0, [&] {
      return format("barrier %zu: %d arrivals of %d when the block ended", id,
                    barriers_[id].arrived, barriers_[id].expected);
    });
  }
}

void Block::report_stuck() {
  std::map<std::pair<Pc, bool>, std::vector<const Lane*>> waiting;
  for (const Lane& lane : lanes_) {
    if (lane.state == LaneState::kDone) continue;
    waiting[{lane.waits_pc, lane.state == LaneState::kAtBarrier}].push_back(&lane);
  }
  for (const auto& [place, lanes] : waiting) {
    const Lane& first = *lanes.front();
    const auto kind =
        place.second ? FindingKind::kUnmatchedBarrier : FindingKind::kUnmatchedCollective;
    findings_.add(kind, place_of(first), place.first, 0, [&, count = lanes.size()] {
      const size_t ended = lanes_.size() - alive_;
      return format("%zu threads wait at %s (id %d) for ever; %zu have ended", count,
                    first.waits_at, first.waits_id, ended);
    });
  }
}

void Block::access(Lane& lane, uintptr_t address, int bytes, bool is_write, bool aligned, Pc pc) {
  if (aligned && (address & (bytes - 1)) != 0) {
    findings_.add(FindingKind::kMisaligned, place_of(lane), pc, 0, [&] {
      return format("%d-byte %s at address %% %d = %d", bytes, is_write ? "store" : "load", bytes,
                    static_cast<int>(address & (bytes - 1)));
    });
    abandon(lane);  // the processor itself may fault on it
  }
  if (shared_.contains(address)) {
    const uint32_t offset = shared_.offset(address);
    log(lane, is_write ? AccessKind::kSharedStore : AccessKind::kSharedLoad, offset, bytes, pc);
    if (!shared_.check_bounds(lane, offset, bytes, pc, is_write ? "store" : "load")) return;
    if (is_write) {
      shared_.write(lane, offset, bytes, pc);
    } else {
      shared_.read(lane, offset, bytes, pc);
    }
    return;
  }
  GlobalArray* array = launch_.memory.find(address, bytes);
  if (array != nullptr && array->contains(address, bytes)) {
    log(lane, is_write ? AccessKind::kGlobalStore : AccessKind::kGlobalLoad, address, bytes, pc);
    if (is_write) {
      array->write(lane, block_, address, bytes, pc, findings_);
    } else {
      array->read(lane, block_, address, bytes, pc, findings_);
    }
    return;
  }
  if (!is_write) {
    const uintptr_t arguments = reinterpret_cast<uintptr_t>(launch_.arguments);
    if (address >= arguments && address + bytes <= arguments + launch_.argument_bytes) return;
    if (in_image(address, bytes)) return;  // a constant
  }
  findings_.add(FindingKind::kGlobalOutOfBounds, place_of(lane), pc, 0, [&] {
    if (array == nullptr) {
      return format("%d-byte %s at %p, in no array", bytes, is_write ? "store" : "load",
                    reinterpret_cast<void*>(address));
    }
    return format("%d-byte %s at %s %+lld", bytes, is_write ? "store" : "load",
                  array->name().c_str(), static_cast<long long>(address - array->start()));
  });
  if (array == nullptr) abandon(lane);  // it would fault, or harm the emulator
}

}  // namespace retnet::simt
