// SPDX-License-Identifier: Apache-2.0
//
// The headline shape: bfloat16, Dk = 256, Dv = 512, and enough heads that each multiprocessor of an H100 has
// work.
#include "times.h"

#include <cstdio>
#include <stdexcept>

#include "arrays.h"
#include "kernels/cuda/norm/launch.h"
#include "kernels/cuda/retention/chunkwise/launch.h"
#include "kernels/cuda/retention/decode_step/launch.h"
#include "kernels/cuda/retention/grad_log_decay/launch.h"
#include "kernels/cuda/rotary/launch.h"
#include "test_device.h"

namespace retnet::smoke {
namespace {

using namespace kernels::cuda;

constexpr DType kDtype = DType::kBFloat16;
constexpr int64_t kHeads = 16, kDk = 256, kDv = 512, kTokens = 8192;

/// Random numbers of bfloat16, in a pattern that repeats: zeros would draw less power.
std::vector<uint16_t> pattern(int64_t count) {
  static const Array random = encode(random_values(1 << 16, 0, 1, 1), kDtype);
  std::vector<uint16_t> values(count);
  const size_t period = random.bytes.size() / 2 - 1;  // odd: rows differ
  const auto* from = reinterpret_cast<const uint16_t*>(random.bytes.data());
  for (size_t i = 0; i < values.size(); ++i) values[i] = from[i % period];
  return values;
}

RetentionOperand operand(TestDevice& device, int64_t batch, int64_t heads, int64_t size,
                         const char* name) {
  RetentionOperand result;
  result.ptr = device.input(pattern(batch * kTokens * heads * size), name);
  result.stride_h = size;
  result.stride_t = heads * size;
  result.stride_b = kTokens * result.stride_t;
  return result;
}

std::vector<float> log_decays(int64_t heads) {
  std::vector<float> values;
  for (int64_t h = 0; h < heads; ++h) {
    values.push_back(static_cast<float>(std::log1p(-std::exp2(-5.0 - h % 8))));
  }
  return values;
}

/// A line: the median, and its share of each of `units`.
void time(const std::string& what, double units, const char* unit,
          const std::function<cudaError_t()>& launch) {
  const std::optional<double> ns = time_launch(launch);
  if (!ns) return;
  std::printf("time %-36s %9.2f us %9.3f ns per %s\n", what.c_str(), *ns / 1e3, *ns / units, unit);
  std::fflush(stdout);
}

struct Retention {
  TestDevice device;
  ChunkwiseParams p;
  ChunkwiseGradients gradients;
  double token_heads;

  explicit Retention(int64_t batch, int64_t heads)
      : token_heads(static_cast<double>(batch * heads * kTokens)) {
    p.batch = p.sequences = batch;
    p.tokens = kTokens;
    p.heads = heads;
    p.head_dim_qk = kDk;
    p.head_dim_v = kDv;
    p.dtype = kDtype;
    p.scale = 1.0f / 16;
    p.q = operand(device, batch, heads, kDk, "q");
    p.k = operand(device, batch, heads, kDk, "k");
    p.v = operand(device, batch, heads, kDv, "v");
    p.log_decay_ptr = device.input(log_decays(heads), "log_decay");
    const int64_t rows = batch * kTokens * heads;
    p.out_ptr = device.output<uint16_t>(rows * kDv, "out");
    p.final_state_ptr = device.output<float>(batch * heads * kDk * kDv, "final_state");
    gradients.grad_out = operand(device, batch, heads, kDv, "grad_out");
    gradients.grad_q_ptr = gradients.grad_k_ptr = device.output<uint16_t>(rows * kDk, "gradient");
    gradients.grad_v_ptr = p.out_ptr;
  }
};

/// The plan, with its workspace. Prints why there is none and returns false then.
bool plan_call(TestDevice& device, ChunkwiseParams& p, ChunkwisePlan& plan, const char* what) {
  plan = chunkwise_plan(p, test_device_limits(), 0, false);
  if (plan.unsupported_reason != nullptr) {
    std::printf("time %-36s not timed: %s\n", what, plan.unsupported_reason);
    return false;
  }
  if (plan.workspace_bytes > 0) {
    p.workspace_ptr = device.workspace<float>(plan.workspace_bytes / 4, "workspace");
  }
  return true;
}

void time_chunkwise(Retention& call, ChunkwiseParams p, const char* what) {
  ChunkwisePlan plan;
  if (!plan_call(call.device, p, plan, what)) return;
  time(what, call.token_heads, "token-head", [&] { return launch_chunkwise(p, plan, nullptr); });
}

void forward() {
  Retention call(2, kHeads);
  time_chunkwise(call, call.p, "chunkwise_forward");
}

void backward() {
  Retention call(2, kHeads);
  const auto pass = [&](ChunkwisePass which) {
    return chunkwise_gradient(which, call.p, call.gradients);
  };
  time_chunkwise(call, pass(ChunkwisePass::kGradQ), "chunkwise_backward, grad_q");
  time_chunkwise(call, pass(ChunkwisePass::kGradK), "chunkwise_backward, grad_k");
  time_chunkwise(call, pass(ChunkwisePass::kGradV), "chunkwise_backward, grad_v");
}

void segments() {
  Retention call(1, 4);  // so few heads that the plan cuts
  ChunkwisePlan plan;
  if (!plan_call(call.device, call.p, plan, "segment_scan")) return;
  time("forward in segments", call.token_heads, "token-head",
       [&] { return launch_chunkwise(call.p, plan, nullptr); });
  if (plan.segment_length == 0) return;
  time("segment_scan", call.token_heads, "token-head",
       [&] { return launch_segment_scan(call.p, plan.segment_length, nullptr); });
}

void grad_log_decay() {
  Retention call(2, kHeads);
  const GradLogDecayPlan plan = grad_log_decay_plan(call.p, test_device_limits());
  if (plan.unsupported_reason != nullptr) {
    std::printf("time %-36s not timed: %s\n", "grad_log_decay", plan.unsupported_reason);
    return;
  }
  call.gradients.grad_log_decay_ptr =
      call.device.output<double>(call.p.sequences * call.p.heads * plan.slices, "parts");
  time("grad_log_decay", call.token_heads, "token-head", [&] {
    return launch_grad_log_decay({call.p, call.gradients}, plan, nullptr);
  });
}

void decode_step() {
  constexpr int64_t kBatch = 16;  // states that no L2 cache holds
  TestDevice device;
  DecodeStepParams p;
  p.batch = p.states = kBatch;
  p.heads = kHeads;
  p.head_dim_qk = kDk;
  p.head_dim_v = kDv;
  p.dtype = kDtype;
  p.eps = 1e-5f;
  p.q_ptr = device.input(pattern(kBatch * kHeads * kDk), "q");
  p.k_ptr = device.input(pattern(kBatch * kHeads * kDk), "k");
  p.v_ptr = device.input(pattern(kBatch * kHeads * kDv), "v");
  p.gate_ptr = device.input(pattern(kBatch * kHeads * kDv), "gate");
  p.q_stride_h = p.k_stride_h = kDk;
  p.v_stride_h = p.gate_stride_h = kDv;
  p.q_stride_b = p.k_stride_b = kHeads * kDk;
  p.v_stride_b = p.gate_stride_b = kHeads * kDv;
  p.log_decay_ptr = device.input(log_decays(kHeads), "log_decay");
  p.frequencies_ptr = device.input(std::vector<float>(kDk / 2, 0.01f), "frequencies");
  p.positions_ptr = device.input(std::vector<int64_t>(kBatch, 100), "positions");
  p.positions_stride_b = 1;
  const std::vector<float> zeros(kBatch * kHeads * kDk * kDv);
  p.state_ptr = device.in_out(zeros, "state");
  p.state_stride_k = kDv;
  p.state_stride_h = kDk * kDv;
  p.state_stride_s = kHeads * kDk * kDv;
  p.out_ptr = device.output<uint16_t>(kBatch * kHeads * kDv, "out");
  for (const int cluster : {1, 2, 4, 8}) {
    if (cluster > 1 && test_device_limits().capability < kDecodeStepClusterCapability) break;
    time("decode_step, cluster of " + std::to_string(cluster), static_cast<double>(kBatch * kHeads),
         "token-head", [&] { return launch_decode_step(p, cluster, nullptr); });
  }
}

void gated_group_norm() {
  constexpr int64_t kRows = 2 * kTokens;
  TestDevice device;
  GatedGroupNormParams forward;
  forward.tokens = kRows;
  forward.heads = kHeads;
  forward.head_dim_v = kDv;
  forward.dtype = kDtype;
  forward.eps = 1e-5f;
  const auto values = pattern(kRows * kHeads * kDv);
  forward.x_ptr = device.input(values, "x");
  forward.gate_ptr = device.input(values, "gate");
  forward.x_stride_h = forward.gate_stride_h = kDv;
  forward.x_stride_n = forward.gate_stride_n = kHeads * kDv;
  forward.weight_ptr = device.input(std::vector<float>(kHeads * kDv, 1.0f), "weight");
  forward.weight_stride_h = kDv;
  forward.out_ptr = device.output<uint16_t>(kRows * kHeads * kDv, "out");
  const auto units = static_cast<double>(kRows * kHeads);
  time("gated_group_norm, forward", units, "token-head",
       [&] { return launch_gated_group_norm(forward, nullptr); });

  GatedGroupNormBackwardParams backward;
  static_cast<GatedGroupNormInputs&>(backward) = forward;
  backward.grad_out_ptr = device.input(values, "grad_out");
  backward.grad_out_stride_h = kDv;
  backward.grad_out_stride_n = kHeads * kDv;
  backward.grad_x_ptr = forward.out_ptr;
  backward.grad_gate_ptr = device.output<uint16_t>(kRows * kHeads * kDv, "grad_gate");
  time("gated_group_norm, grad_x, grad_gate", units, "token-head",
       [&] { return launch_gated_group_norm_backward(backward, nullptr); });
  backward.grad_weight_ptr = device.output<float>(kHeads * kDv, "grad_weight");
  backward.grad_weight_per_head = true;
  backward.workspace_ptr =
      device.workspace<std::byte>(gated_group_norm_workspace_bytes(backward), "workspace");
  time("gated_group_norm, grad_weight too", units, "token-head",
       [&] { return launch_gated_group_norm_backward(backward, nullptr); });
}

void column_sum() {
  TestDevice device;
  ColumnSumParams p;
  p.rows = kGatedGroupNormBackwardBlocks / kHeads;
  p.columns = kHeads * kDv;
  p.in_ptr = device.input(std::vector<float>(p.rows * p.columns, 1.0f), "in");
  p.out_ptr = device.output<float>(p.columns, "out");
  time("column_sum", static_cast<double>(p.rows * kHeads), "row and head",
       [&] { return launch_column_sum(p, nullptr); });
}

void rotary() {
  constexpr int64_t kBatch = 2;
  TestDevice device;
  RotaryParams p;
  p.batch = kBatch;
  p.tokens = kTokens;
  p.heads = kHeads;
  p.head_dim_qk = kDk;
  p.dtype = kDtype;
  for (RotaryOperand* x : {&p.q, &p.k}) {
    x->in_ptr = device.input(pattern(kBatch * kTokens * kHeads * kDk), "x");
    x->out_ptr = device.output<uint16_t>(kBatch * kTokens * kHeads * kDk, "out");
    x->stride_h = kDk;
    x->stride_t = kHeads * kDk;
    x->stride_b = kTokens * kHeads * kDk;
  }
  std::vector<int64_t> positions(kTokens);
  for (int64_t t = 0; t < kTokens; ++t) positions[t] = t;
  p.positions_ptr = device.input(positions, "positions");
  p.positions_stride_t = 1;
  p.frequencies_ptr = device.input(std::vector<float>(kDk / 2, 0.01f), "frequencies");
  time("rotary, q and k", static_cast<double>(kBatch * kTokens * kHeads), "token-head",
       [&] { return launch_rotary(p, nullptr); });
}

}  // namespace

void print_times(const std::string& kernel) {
  if (kernel == "chunkwise_forward") forward();
  if (kernel == "chunkwise_backward") backward();
  if (kernel == "segment_scan") segments();
  if (kernel == "grad_log_decay") grad_log_decay();
  if (kernel == "decode_step") decode_step();
  if (kernel == "gated_group_norm") gated_group_norm();
  if (kernel == "column_sum") column_sum();
  if (kernel == "rotary") rotary();
}

}  // namespace retnet::smoke
