// SPDX-License-Identifier: Apache-2.0
//
// The part of kernel_counts that describes launches for tools/estimate_report.py. It gives the kernel, its grid,
// and its arguments as they lie in the constant bank. The addresses in them are made up.
#include <cstring>

#include "kernel_counts.h"
#include "kernels/cuda/norm/cost_model.h"
#include "kernels/cuda/retention/decode_step/cost_model.h"
#include "kernels/cuda/retention/grad_log_decay/cost_model.h"
#include "kernels/cuda/rotary/cost_model.h"

namespace retnet::kernels::cuda {
namespace {

// These are the sizes of the chunkwise goals. kHeads is B H.
constexpr int64_t kHeads = 32, kTokens = 8192, kDv = 512, kDk = 256;
const ModelDevice& kDevice = kModelDevices[0];

template <class T>
T* address(int number) {
  return reinterpret_cast<T*>(0x7f0000000000 + (int64_t{number} << 36));
}

RetentionOperand operand(int number, int64_t tokens, int64_t heads, int64_t size) {
  return {address<void>(number), tokens * heads * size, heads * size, size};
}

/// Returns the bytes of a kernel's arguments. Each lies at a multiple of its alignment.
template <class... Args>
std::string bytes_of(const Args&... args) {
  std::vector<unsigned char> bytes;
  const auto append = [&]<class T>(const T& value) {
    bytes.resize((bytes.size() + alignof(T) - 1) / alignof(T) * alignof(T));
    const size_t at = bytes.size();
    bytes.resize(at + sizeof(T));
    std::memcpy(bytes.data() + at, &value, sizeof(T));
  };
  (append(args), ...);
  std::string text = "\"";
  for (const unsigned char byte : bytes) {
    char digits[3];
    std::snprintf(digits, sizeof(digits), "%02x", byte);
    text += digits;
  }
  return text + "\"";
}

/// Describes a launch of `blocks` blocks. Times are given per one of `units`. `kernel` is a part of its mangled
/// name. A block walks through `length`; 0 if the runs of `with` have all of it. A number "chunk" is added if the
/// kernel executes per chunk what kernel_counts counts, and "cluster" is the number of blocks in a cluster.
Object launch(const char* name, const std::string& kernel, int64_t blocks, int threads,
              size_t shared_bytes, double units, int64_t length) {
  return Object()
      .text("name", name)
      .text("kernel", kernel.c_str())
      .number("blocks", static_cast<double>(blocks))
      .number("threads", threads)
      .number("shared_bytes", static_cast<double>(shared_bytes))
      .number("units", units)
      .number("length", static_cast<double>(length));
}

/// Adds the arguments of a short and a long call, which may be the same, and the bytes per unit.
std::string with(Object object, int64_t short_length, int64_t long_length, const auto& arguments,
                 double l2_bytes, double memory_bytes) {
  const auto at = [&](int64_t length) {
    return Object()
        .number("length", static_cast<double>(length))
        .raw("bytes", arguments(length))
        .str();
  };
  std::vector<std::string> runs = {at(short_length)};
  if (long_length != short_length) runs.push_back(at(long_length));
  return object.raw("runs", list(runs))
      .number("l2_bytes", l2_bytes)
      .number("memory_bytes", memory_bytes)
      .str();
}

std::string instance(const char* name, DType dtype, int number) {
  return std::string(name) + "ILNS1_5DTypeE" + std::to_string(static_cast<int>(dtype)) + "ELi" +
         std::to_string(number) + "E";
}

std::string chunkwise(const char* name, int64_t head_dim_qk, int64_t head_dim_v, int direction,
                      ChunkwisePhase phase = ChunkwisePhase::kWhole,
                      DType dtype = DType::kBFloat16) {
  ChunkwiseParams p = one_sequence(dtype, kHeads, head_dim_qk, head_dim_v);
  p.direction = direction;
  p.log_decay_ptr = address<float>(4);
  p.out_ptr = address<void>(5);
  p.final_state_ptr = address<float>(6);
  p.workspace_ptr = address<float>(7);
  p.tokens = kTokens;
  const ChunkwisePlan plan = chunkwise_plan(p, kDevice.limits, 0, false);
  require(plan.unsupported_reason == nullptr, "a launch is not supported");
  const ChunkwiseTile& tile = kChunkwiseTiles[plan.tile];
  const auto arguments = [&](int64_t tokens) {
    ChunkwiseParams own = p;
    own.tokens = tokens;
    own.q = operand(1, tokens, kHeads, head_dim_qk);
    own.k = operand(2, tokens, kHeads, head_dim_qk);
    own.v = operand(3, tokens, kHeads, head_dim_v);
    // There are two segments. The first one is walked.
    const int segment = phase == ChunkwisePhase::kWhole ? 0 : static_cast<int>(tokens);
    if (segment > 0) own.tokens = 2 * tokens;
    return bytes_of(own, phase, segment, true);
  };
  const bool local = phase == ChunkwisePhase::kLocal;
  return with(
      launch(name, instance("chunkwise_kernel", dtype, plan.tile), kHeads * plan.slices,
             tile.threads(), tile.shared_bytes(), static_cast<double>(kHeads * kTokens), kTokens)
          .number("chunk", local ? 0 : tile.chunk),
      4 * tile.chunk, 7 * tile.chunk, arguments,
      static_cast<double>(chunkwise_l2_bytes(tile, head_dim_qk, head_dim_v)),
      local ? 2.0 * static_cast<double>(head_dim_qk + head_dim_v)
            : static_cast<double>(chunkwise_memory_bytes(head_dim_qk, head_dim_v)));
}

std::string segment_scan() {
  constexpr int64_t kSegment = 2048, kStateBytes = 2 * 4 * kDk * kDv;
  ChunkwiseParams p = one_sequence(DType::kBFloat16, kHeads, kDk, kDv);
  p.log_decay_ptr = address<float>(4);
  p.workspace_ptr = address<float>(7);
  constexpr int64_t kBlocks = kDk * kDv / 256;
  const auto arguments = [&](int64_t tokens) {
    ChunkwiseParams own = p;
    own.tokens = tokens;
    return bytes_of(own, static_cast<int>(kSegment), static_cast<int>(kBlocks));
  };
  const double bytes = static_cast<double>(kStateBytes) / kSegment;
  return with(launch("segment_scan", "segment_scan_kernel", kHeads * kBlocks, 256, 0,
                     static_cast<double>(kHeads * kTokens), 0),
              kTokens, kTokens, arguments, bytes, bytes);
}

std::string grad_log_decay() {
  ChunkwiseParams p = one_sequence(DType::kBFloat16, kHeads, kDk, kDv);
  p.tokens = kTokens;
  p.log_decay_ptr = address<float>(4);
  const GradLogDecayPlan plan = grad_log_decay_plan(p, kDevice.limits);
  require(plan.unsupported_reason == nullptr, "a launch is not supported");
  const GradLogDecayTile& tile = kGradLogDecayTiles[plan.tile];
  const auto arguments = [&](int64_t tokens) {
    GradLogDecayParams own{p, {}};
    own.forward.tokens = tokens;
    own.forward.q = operand(1, tokens, kHeads, kDk);
    own.forward.k = operand(2, tokens, kHeads, kDk);
    own.forward.v = operand(3, tokens, kHeads, kDv);
    own.gradients.grad_out = operand(5, tokens, kHeads, kDv);
    own.gradients.grad_log_decay_ptr = address<double>(6);
    return bytes_of(own, true);
  };
  return with(launch("grad_log_decay", instance("grad_log_decay_kernel", p.dtype, plan.tile),
                     kHeads * plan.slices, tile.threads(), tile.shared_bytes(),
                     static_cast<double>(kHeads * kTokens), kTokens)
                  .number("chunk", tile.chunk),
              4 * tile.chunk, 7 * tile.chunk, arguments,
              static_cast<double>(grad_log_decay_l2_bytes(tile, kDk, kDv)),
              static_cast<double>(grad_log_decay_memory_bytes(kDk, kDv)));
}

std::string decode_step(const char* name, int64_t batch) {
  DecodeStepParams p;
  p.batch = p.states = batch;
  p.heads = 8;
  p.head_dim_qk = kDk;
  p.head_dim_v = kDv;
  p.dtype = DType::kBFloat16;
  const auto tokens = [&](int number, int64_t size, int64_t& stride_b, int64_t& stride_h) {
    stride_h = size;
    stride_b = p.heads * size;
    return address<void>(number);
  };
  p.q_ptr = tokens(1, kDk, p.q_stride_b, p.q_stride_h);
  p.k_ptr = tokens(2, kDk, p.k_stride_b, p.k_stride_h);
  p.v_ptr = tokens(3, kDv, p.v_stride_b, p.v_stride_h);
  p.gate_ptr = tokens(4, kDv, p.gate_stride_b, p.gate_stride_h);
  p.log_decay_ptr = address<float>(5);
  p.positions_ptr = address<void>(6);
  p.positions_stride_b = 1;
  p.frequencies_ptr = address<float>(7);
  p.weight_ptr = address<void>(8);
  p.weight_stride_h = kDv;
  p.state_ptr = address<float>(9);
  p.state_stride_k = kDv;
  p.state_stride_h = kDk * kDv;
  p.state_stride_s = p.heads * p.state_stride_h;
  p.out_ptr = address<void>(10);
  const int cluster = decode_step_cluster(p, kDevice.limits);
  const auto arguments = [&](int64_t) { return bytes_of(p, cluster); };
  const auto bytes = static_cast<double>(decode_step_memory_bytes(p.dtype, kDk, kDv));
  return with(launch(name, "decode_step_kernelILNS1_5DTypeE2ELb1E", batch * p.heads * cluster,
                     kDecodeStepThreads, decode_step_shared_bytes(kDk, kDv, cluster),
                     static_cast<double>(batch * p.heads), 0)
                  .number("cluster", cluster),
              0, 0, arguments, bytes, bytes);
}

void set_norm(GatedGroupNormInputs& p, int64_t tokens) {
  p.tokens = tokens;
  p.heads = kHeads;
  p.head_dim_v = kDv;
  p.dtype = DType::kBFloat16;
  p.eps = 1e-5f;
  p.x_ptr = address<void>(1);
  p.gate_ptr = address<void>(2);
  p.x_stride_n = p.gate_stride_n = kHeads * kDv;
  p.x_stride_h = p.gate_stride_h = kDv;
  p.weight_ptr = address<void>(3);
  p.weight_stride_h = kDv;
}

std::string norm(const char* name, bool backward) {
  const int per_row = kGatedGroupNormTiles[gated_group_norm_tile(kDv)].threads_per_row;
  const int64_t rows = kGatedGroupNormBlock / per_row;
  GatedGroupNormBackwardParams p;
  set_norm(p, kTokens);
  p.grad_out_ptr = address<void>(4);
  p.grad_out_stride_n = kHeads * kDv;
  p.grad_out_stride_h = kDv;
  p.grad_x_ptr = address<void>(5);
  p.grad_gate_ptr = address<void>(6);
  p.grad_weight_ptr = address<float>(7);
  p.grad_weight_per_head = true;
  p.workspace_ptr = address<void>(8);
  const int64_t per_head = gated_group_norm_blocks_per_head(p);
  const int64_t blocks = backward ? per_head * kHeads : kTokens * kHeads / rows;
  const auto arguments = [&](int64_t tokens) {
    if (!backward) {
      GatedGroupNormParams forward;
      set_norm(forward, kTokens);
      forward.out_ptr = address<void>(5);
      return bytes_of(forward);
    }
    GatedGroupNormBackwardParams own = p;
    own.tokens = tokens;
    return bytes_of(own);
  };
  const auto bytes = static_cast<double>(gated_group_norm_bytes(backward, p.dtype, kDv).memory());
  const std::string kernel = std::string(backward ? "norm_backward_kernel" : "norm_kernel") +
                             "ILNS1_5DTypeE2ELi8ELi" + std::to_string(per_row) + "E";
  const int64_t turn = per_head * rows;  // tokens that all blocks take at once
  return with(launch(name, kernel, blocks, kGatedGroupNormBlock, 0,
                     static_cast<double>(kHeads * kTokens), backward ? kTokens : 0),
              backward ? 4 * turn : 0, backward ? 8 * turn : 0, arguments, bytes, bytes);
}

std::string column_sum() {
  // The blocks of the backward pass wrote the rows that this kernel sums.
  GatedGroupNormInputs inputs;
  set_norm(inputs, kTokens);
  const int64_t rows = gated_group_norm_blocks_per_head(inputs), columns = kHeads * kDv;
  const auto arguments = [&](int64_t length) {
    ColumnSumParams p;
    p.in_ptr = address<float>(1);
    p.out_ptr = address<float>(2);
    p.rows = length;
    p.columns = columns;
    return bytes_of(p);
  };
  const double bytes = 4.0 * static_cast<double>(rows * columns) / (kHeads * kTokens);
  return with(launch("column_sum", "column_sum_kernel", columns / 32, 512, 0,
                     static_cast<double>(kHeads * kTokens), 0),
              rows, rows, arguments, bytes, bytes);
}

std::string rotary(const char* name, bool interleaved) {
  RotaryParams p;
  p.batch = 1;
  p.tokens = kTokens;
  p.heads = kHeads;
  p.head_dim_qk = kDk;
  p.dtype = DType::kBFloat16;
  p.interleaved = interleaved;
  for (RotaryOperand* operand : {&p.q, &p.k}) {
    const int number = operand == &p.q ? 1 : 3;
    *operand = {address<void>(number), kTokens * kHeads * kDk, kHeads * kDk, kDk,
                address<void>(number + 1)};
  }
  p.positions_ptr = address<void>(5);
  p.positions_stride_t = 1;
  p.frequencies_ptr = address<float>(6);
  const int vector = rotary_vector(p);
  const int64_t threads = kTokens * rotary_threads_per_token(p, vector);
  const auto bytes = static_cast<double>(rotary_memory_bytes(p.dtype, kDk));
  const std::string kernel = "rotary_kernelILNS1_5DTypeE2ELi" + std::to_string(vector) + "ELb" +
                             std::to_string(interleaved ? 1 : 0) + "E";
  return with(
      launch(name, kernel, threads / kRotaryBlock, kRotaryBlock, 0,
             static_cast<double>(kHeads * kTokens), 0),
      0, 0, [&](int64_t) { return bytes_of(p); }, bytes, bytes);
}

}  // namespace

std::vector<std::string> kernel_launches() {
  return {
      chunkwise("chunkwise_forward", kDk, kDv, 1),
      chunkwise("chunkwise_grad_v", kDk, kDv, -1),
      chunkwise("chunkwise_grad_q", kDv, kDk, 1),
      chunkwise("chunkwise_grad_k", kDv, kDk, -1),
      chunkwise("chunkwise_forward_128", 128, 256, 1),
      chunkwise("chunkwise_forward_64", 64, 128, 1),
      chunkwise("chunkwise_forward_64x64", 64, 64, 1),
      chunkwise("chunkwise_forward_fp16", kDk, kDv, 1, ChunkwisePhase::kWhole, DType::kFloat16),
      chunkwise("chunkwise_local_states", kDk, kDv, 1, ChunkwisePhase::kLocal),
      chunkwise("chunkwise_fused", kDk, kDv, 1, ChunkwisePhase::kFused),
      segment_scan(),
      grad_log_decay(),
      decode_step("decode_step_1", 1),
      decode_step("decode_step_16", 16),
      norm("norm_forward", false),
      norm("norm_backward", true),
      column_sum(),
      rotary("rotary_interleaved", true),
      rotary("rotary_half", false),
  };
}

}  // namespace retnet::kernels::cuda
