// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "simt/device.h"
#include "simt/runtime/access_log.h"
#include "simt/runtime/cluster.h"
#include "simt/runtime/fiber.h"
#include "simt/runtime/findings.h"
#include "simt/runtime/global_memory.h"
#include "simt/runtime/lane.h"
#include "simt/runtime/shared_memory.h"
#include "simt/simt.h"

namespace retnet::simt {

// One kernel launch, as all of its blocks see it.
struct LaunchContext {
  LaunchShape shape;
  void (*trampoline)(const void*);
  const void* arguments;
  size_t argument_bytes;
  const Options& options;
  GlobalMemory& memory;
  Findings& findings;

  int threads() const { return static_cast<int>(shape.block.x * shape.block.y * shape.block.z); }
  uint32_t blocks() const { return shape.grid.x * shape.grid.y * shape.grid.z; }
};

// Runs the given blocks one after the other. Their threads are fibers of this OS thread, and a lane
// runs until it must wait for others.
class Block {
 public:
  Block(const LaunchContext& launch, Cluster& cluster, int rank, Stacks& stacks);

  void start(uint32_t block);
  bool advance();  // as far as it goes without other blocks; whether it did
  void end();
  const Counters& counters() const { return counters_; }
  const SharedMemory& shared() const { return shared_; }

  // The rest is for what runs on behalf of a lane (class Runtime).
  uint3 index() const { return index_; }
  const LaunchContext& launch() const { return launch_; }
  SharedMemory& shared() { return shared_; }
  Counters& counters() { return counters_; }
  uint32_t linear_index() const { return block_; }
  Cluster& cluster() { return cluster_; }
  int rank() const { return rank_; }
  const Lane& remote() const { return remote_; }

  // A plain access or one through simt::load and simt::store, already known not to be to the
  // lane's own stack.
  void access(Lane& lane, uintptr_t address, int bytes, bool is_write, bool aligned, Pc pc);

  // threads < 0: all of the block.
  void barrier(Lane& lane, int id, int threads, bool wait, Pc pc);
  void cluster_barrier(Lane& lane, Pc pc);
  bool all_at_cluster_barrier() const {
    return cluster_barrier_.arrived == static_cast<int>(lanes_.size());
  }
  void leave_cluster_barrier();

  // Waits until all lanes of the warp have called with the same instruction. The last one runs `act`
  // for all.
  using Action = void (*)(Block& block, std::span<Lane> warp, Pc pc);
  void collective(Lane& lane, const char* instruction, const void* argument, Pc pc, Action act);
  void order_warp(std::span<Lane> warp);  // each lane's accesses so far become known to the others

  void log(const Lane& lane, AccessKind kind, uint64_t address, int bytes, Pc pc) {
    warps_[lane.warp].log.add(lane.lane, kind, address, bytes, pc);
  }

  // Ends the block at once, because it cannot continue without harm.
  [[noreturn]] void abandon(Lane& lane);

 private:
  struct Warp {
    AccessLog log;
    // What lanes wait at, if any do.
    uint32_t arrived = 0;
    const char* instruction = nullptr;
    Pc pc = 0;
  };
  // What the lanes that meet at a barrier know together.
  class Joined {
   public:
    void add(Lane& lane);  // and what it has done so far
    Clocks result(size_t threads) const;

   private:
    std::vector<Clocks> clocks_;  // distinct
    std::vector<std::pair<int, uint32_t>> own_;
  };
  struct Barrier {
    int expected = 0;
    int arrived = 0;
    Pc pc = 0;  // of the first to arrive
    std::vector<Lane*> waiting;
    Joined joined;
    std::vector<Pc> warp_pc;  // of each warp's first arrival, 0 none
  };

  static void lane_main();
  bool run_warp(int warp);
  void resume(Lane& lane);
  void suspend(Lane& lane, LaneState state, const char* what, int id, Pc pc);
  void finish_lane(Lane& lane);
  void report_stuck();

  void release(Barrier& barrier);
  size_t clocks() const { return lanes_.size() + 1; }

  const LaunchContext& launch_;
  Cluster& cluster_;
  const int rank_;
  Findings& findings_;
  Stacks& stacks_;
  SharedMemory shared_;
  std::vector<Lane> lanes_;
  std::vector<Warp> warps_;
  // Represents the threads of other blocks that store into the shared memory of this one. What it
  // knows, and what is known of it, changes only at barriers of the cluster.
  Lane remote_;
  std::array<Barrier, 16> barriers_;
  Barrier cluster_barrier_;
  std::vector<int> warp_order_;
  std::mt19937_64 random_;
  Counters counters_;
  uint32_t block_ = 0;
  uint3 index_{};
  int alive_ = 0;
  bool abandoned_ = false;
  void* scheduler_ = nullptr;  // its stack pointer while a lane runs
};

// While an object lives, the runtime is running for the lane that called; see running_lane.
class Runtime {
 public:
  Runtime() : lane(*running_lane), block(*lane.block) { running_lane = nullptr; }
  ~Runtime() { running_lane = &lane; }
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  Lane& lane;
  Block& block;
};

}  // namespace retnet::simt
