// SPDX-License-Identifier: Apache-2.0
//
// What kernel_counts.cpp and grad_log_decay_counts.cpp share: JSON, runs in the SIMT emulator, and the objects
// that tools/mma_report.py reads of the kernels that walk a sequence in chunks.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "kernels/cuda/retention/chunkwise/cost_model.h"
#include "simt/simt.h"

namespace retnet::kernels::cuda {

inline const char* name(DType dtype) {
  constexpr const char* kNames[] = {"fp32", "fp16", "bf16"};
  return kNames[static_cast<int>(dtype)];
}

inline void require(bool condition, const std::string& what) {
  if (condition) return;
  std::fprintf(stderr, "kernel_counts: %s\n", what.c_str());
  std::exit(1);
}

/// An input of zeros, because nothing here depends on values.
inline void* zeros(simt::Simulator& simulator, int64_t bytes, const char* name) {
  return simulator.input<std::byte>(std::vector<std::byte>(bytes), name);
}

inline simt::LaunchCounters finish(simt::Simulator& simulator, const std::string& what) {
  const simt::Report& report = simulator.finish();
  require(report.findings.empty(), what + ": " + report.to_string());
  require(report.launches.size() == 1, what + ": launches");
  return report.launches[0];
}

/// JSON, one object at a time.
class Object {
 public:
  Object& text(const char* key, const char* value) {
    return raw(key, std::string("\"").append(value).append("\""));
  }
  Object& number(const char* key, double value) {
    char digits[32];
    std::snprintf(digits, sizeof(digits), "%.10g", value);
    return raw(key, digits);
  }
  Object& raw(const char* key, const std::string& value) {
    body_ += std::string(body_.empty() ? "" : ", ").append("\"").append(key).append("\": ") + value;
    return *this;
  }
  std::string str() const { return "{" + body_ + "}"; }

 private:
  std::string body_;
};

inline std::string list(const std::vector<std::string>& items) {
  std::string text;
  for (const std::string& item : items) text += (text.empty() ? "\n  " : ",\n  ") + item;
  return "[" + text + "]";
}

/// Returns the cost of `chunks` more chunks, per block and chunk. Bytes are per token and head, of which a chunk
/// has `token_heads`.
inline Object per_chunk(const simt::LaunchCounters& before, const simt::LaunchCounters& after,
                        int chunks, int64_t token_heads) {
  const simt::Counters &a = before.total, &b = after.total;
  const auto block = [&](uint64_t x, uint64_t y) {
    return static_cast<double>(y - x) / (static_cast<double>(after.blocks.size()) * chunks);
  };
  const auto token = [&](uint64_t x, uint64_t y) {
    return static_cast<double>(y - x) / static_cast<double>(token_heads * chunks);
  };
  const auto least = [](const simt::Counters& c) {
    return c.shared_wavefronts() - c.bank_conflicts();
  };
  return Object()
      .number("mma", block(a.mma, b.mma))
      .number("wavefronts", block(a.shared_wavefronts(), b.shared_wavefronts()))
      .number("minimum", block(least(a), least(b)))
      .number("ldmatrix", block(a.matrix_load.wavefronts, b.matrix_load.wavefronts))
      .number("cp_async", block(a.async_store.wavefronts, b.async_store.wavefronts))
      .number("stores", block(a.shared_store.wavefronts, b.shared_store.wavefronts))
      .number("loads", block(a.shared_load.wavefronts, b.shared_load.wavefronts))
      .number("barriers", block(a.barriers, b.barriers))
      .number("l2_loaded", token(a.global_load.sector_bytes, b.global_load.sector_bytes))
      .number("l2_stored", token(a.global_store.sector_bytes, b.global_store.sector_bytes))
      .number("memory_bytes", token(before.unique_read_bytes + before.unique_written_bytes,
                                    after.unique_read_bytes + after.unique_written_bytes));
}

inline Object describe(const ModelDevice& device) {
  Object object;
  object.text("device", device.name)
      .text("architecture", device.architecture)
      .number("multiprocessors", device.limits.multiprocessors)
      .number("clock_ghz", device.clock_ghz)
      .number("mma_per_cycle", device.mma_per_cycle)
      .number("wavefronts_per_cycle", device.wavefronts_per_cycle)
      .number("issue_per_cycle", device.issue_per_cycle)
      .number("l2_tbps", device.l2_tbps)
      .number("memory_tbps", device.memory_tbps)
      .number("memory_latency_ns", device.memory_latency_ns);
  return object;
}

inline ChunkwiseParams one_sequence(DType dtype, int64_t heads, int64_t head_dim_qk,
                                    int64_t head_dim_v) {
  ChunkwiseParams p;
  p.batch = p.sequences = 1;
  p.heads = heads;
  p.head_dim_qk = head_dim_qk;
  p.head_dim_v = head_dim_v;
  p.transposed = head_dim_qk > kChunkwiseMaxHeadDimQk;
  p.dtype = dtype;
  return p;
}

inline RetentionOperand operand_of_zeros(simt::Simulator& simulator, const ChunkwiseParams& p,
                                         int64_t size, const char* name) {
  const int64_t token = p.heads * size;
  return {zeros(simulator, 2 * p.tokens * token, name), p.tokens * token, token, size};
}

/// Sets the inputs, except the initial state.
inline void set_inputs(simt::Simulator& simulator, ChunkwiseParams& p) {
  p.q = operand_of_zeros(simulator, p, p.head_dim_qk, "q");
  p.k = operand_of_zeros(simulator, p, p.head_dim_qk, "k");
  p.v = operand_of_zeros(simulator, p, p.head_dim_v, "v");
  p.log_decay_ptr = static_cast<float*>(zeros(simulator, 4 * p.heads, "log_decay"));
}

inline std::string describe(const CodeInterval& interval) {
  return Object()
      .number("ldmatrix", interval.ldmatrix)
      .number("cp_async", interval.cp_async)
      .number("stores", interval.stores)
      .number("mma", interval.mma)
      .str();
}

/// Returns what was counted for an instantiation, and what its header states. `turns` are those of the loops with
/// mma inside its main loop, by all warps together, in the order of the code. `intervals` are those between
/// its barriers.
template <class Tile>
std::string instantiation(const char* family, DType dtype, int index, const Tile& tile,
                          const std::string& turns, const std::vector<std::string>& intervals,
                          const Object& counted, const Object& header) {
  const std::string shape = std::to_string(tile.head_dim_qk) + "x" + std::to_string(tile.slice) +
                            "x" + std::to_string(tile.chunk);
  return Object()
      .text("family", family)
      .text("dtype", name(dtype))
      .number("tile", index)
      .text("shape", shape.c_str())
      .number("warps", tile.threads() / 32)
      .number("chunk", tile.chunk)
      .number("shared_bytes", static_cast<double>(tile.shared_bytes()))
      .raw("turns", turns)
      .raw("intervals", list(intervals))
      .raw("counted", counted.str())
      .raw("header", header.str())
      .str();
}

/// A goal, and what its model needs from the plan and the header.
inline std::string describe(const char* family, const ChunkwiseGoal& goal,
                            const ModelDevice& device, int tile, int64_t blocks, int64_t l2_bytes,
                            int64_t memory_bytes) {
  return describe(device)
      .text("family", family)
      .text("dtype", name(goal.dtype))
      .number("head_dim_qk", static_cast<double>(goal.head_dim_qk))
      .number("head_dim_v", static_cast<double>(goal.head_dim_v))
      .number("heads", static_cast<double>(goal.heads))
      .number("tokens", static_cast<double>(goal.tokens))
      .number("tile", tile)
      .number("blocks", static_cast<double>(blocks))
      .number("l2_bytes", static_cast<double>(l2_bytes))
      .number("memory_bytes", static_cast<double>(memory_bytes))
      .number("ns", goal.ns)
      .str();
}

/// Calls f(goal, its device) for each goal.
std::vector<std::string> for_each_goal(const auto& goals, const auto& f) {
  std::vector<std::string> items;
  for (const auto& goal : goals) {
    for (const ModelDevice& device : kModelDevices) {
      if (std::string(goal.device) == device.name) items.push_back(f(goal, device));
    }
  }
  return items;
}

/// The instantiations and goals of the log_decay gradient kernel (grad_log_decay_counts.cpp).
std::vector<std::string> grad_log_decay_counts();
std::vector<std::string> grad_log_decay_goals();

/// Launches of every kernel on an H100 (kernel_launches.cpp).
std::vector<std::string> kernel_launches();

}  // namespace retnet::kernels::cuda
