// SPDX-License-Identifier: Apache-2.0
//
// A call of the chunkwise kernel: its inputs, its result by definition in float64, and its run in the SIMT
// emulator.
#pragma once

#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "arrays.h"
#include "catch.h"
#include "kernels/cuda/retention/chunkwise/launch.h"
#include "simt/simt.h"

namespace retnet::kernels::cuda {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

enum class Layout {
  kContiguous,
  kStrided,  // every second token, heads apart, NaN in between; tokens of a head are aligned to 16 bytes
  kNarrow,  // the same, aligned to 8 bytes
  // Two batch entries, tokens or heads are terabytes apart. (The order is that of the dimensions.)
  kFarBatch,
  kFarTokens,
  kFarHeads,
};

struct ChunkwiseCase {
  DType dtype = DType::kBFloat16;
  int tile = 0;                // the tile that the plan must choose
  size_t B = 1, T = 1, H = 2;  // B is 1 with cu_seqlens
  size_t Dk = 0, Dv = 0;       // 0 means the size of the tile
  std::vector<int32_t> cu_seqlens = {};
  std::vector<double> log_decay = {std::log1p(-1.0 / 32),
                                   std::log1p(-1.0 / 500)};  // the heads take these in turn
  bool initial_state = true;
  std::optional<double> scale = {};
  Layout layout = Layout::kContiguous;
  int64_t segment = 0;  // number of tokens, instead of that of the plan

  const ChunkwiseTile& shape() const { return kChunkwiseTiles[tile]; }
  size_t head_dim_qk() const { return Dk != 0 ? Dk : static_cast<size_t>(shape().head_dim_qk); }
  size_t head_dim_v() const { return Dv != 0 ? Dv : static_cast<size_t>(shape().slice); }
  size_t sequences() const { return cu_seqlens.empty() ? B : cu_seqlens.size() - 1; }
  float decay(size_t h) const { return static_cast<float>(log_decay[h % log_decay.size()]); }

  std::string name() const {
    std::string text = dtype == DType::kBFloat16 ? "bf16" : "fp16";
    char rest[160];
    std::snprintf(
        rest, sizeof(rest),
        " tile %d B=%zu T=%zu H=%zu Dk=%zu Dv=%zu initial=%d scale=%g layout=%d segment=%d "
        "packed [",
        tile, B, T, H, head_dim_qk(), head_dim_v(), initial_state, scale.value_or(NAN),
        static_cast<int>(layout), static_cast<int>(segment));
    text += rest;
    for (const int32_t bound : cu_seqlens) text += std::to_string(bound).append(" ");
    return text + "]";
  }
};

struct ChunkwiseInputs {
  Array q, k, v;
  std::vector<float> initial_state;
};

inline ChunkwiseInputs make_inputs(const ChunkwiseCase& c, double mean = 0) {
  ChunkwiseInputs in;
  const size_t rows = c.B * c.T * c.H;
  in.q = encode(random_values(rows * c.head_dim_qk(), mean, 1, 1), c.dtype);
  in.k = encode(random_values(rows * c.head_dim_qk(), mean, 1, 2), c.dtype);
  in.v = encode(random_values(rows * c.head_dim_v(), mean, 1, 3), c.dtype);
  if (c.initial_state) {
    for (const double x :
         random_values(c.sequences() * c.H * c.head_dim_qk() * c.head_dim_v(), 0, 3, 4)) {
      in.initial_state.push_back(static_cast<float>(x));
    }
  }
  return in;
}

inline double chunkwise_scale(const ChunkwiseCase& c) {
  return c.scale.value_or(1 / std::sqrt(static_cast<double>(c.head_dim_qk())));
}

struct ChunkwiseResult {
  std::vector<double> out, final_state;
};

/// Computes S_t = gamma S_{t-1} + k_t^T v_t, out_t = scale q_t S_t token by token.
inline ChunkwiseResult retention_by_definition(const ChunkwiseCase& c, const ChunkwiseInputs& in) {
  const size_t Dk = c.head_dim_qk(), Dv = c.head_dim_v();
  ChunkwiseResult result;
  result.out.resize(c.B * c.T * c.H * Dv);
  for (size_t n = 0; n < c.sequences(); ++n) {
    for (size_t h = 0; h < c.H; ++h) {
      const double gamma = std::exp(static_cast<double>(c.decay(h)));
      std::vector<double> state(Dk * Dv);
      const size_t first = c.cu_seqlens.empty() ? n * c.T : c.cu_seqlens[n];
      const size_t end = c.cu_seqlens.empty() ? first + c.T : c.cu_seqlens[n + 1];
      if (c.initial_state && (gamma > 0 || first == end)) {
        const float* src = in.initial_state.data() + (n * c.H + h) * Dk * Dv;
        state.assign(src, src + Dk * Dv);
      }
      for (size_t t = first; t < end; ++t) {
        const double* q = in.q.values.data() + (t * c.H + h) * Dk;
        const double* k = in.k.values.data() + (t * c.H + h) * Dk;
        const double* v = in.v.values.data() + (t * c.H + h) * Dv;
        double* out = result.out.data() + (t * c.H + h) * Dv;
        for (size_t i = 0; i < Dk; ++i) {
          for (size_t j = 0; j < Dv; ++j) {
            double& s = state[i * Dv + j];
            s = (gamma > 0 ? gamma * s : 0) + k[i] * v[j];
            out[j] += chunkwise_scale(c) * q[i] * s;
          }
        }
      }
      result.final_state.insert(result.final_state.end(), state.begin(), state.end());
    }
  }
  return result;
}

/// The bits that the device returns.
struct ChunkwiseBits {
  std::vector<uint16_t> out;
  std::vector<float> final_state;
};

struct ChunkwiseRun {
  ChunkwiseBits bits;
  simt::Report report;
  bool wide;  // 16-byte copies
};

/// An operand of which one dimension has size 2 and a stride of more than 2^32 elements. Its halves come from
/// the heap and from a thread's arena, which are terabytes apart on Linux.
inline RetentionOperand far_operand(simt::Simulator& simulator, const ChunkwiseCase& c,
                                    const Array& array, size_t size, const char* name) {
  const size_t far = static_cast<size_t>(c.layout) - static_cast<size_t>(Layout::kFarBatch);
  size_t sizes[] = {c.B, c.T, c.H};
  REQUIRE(sizes[far] == 2);
  sizes[far] = 1;
  int64_t strides[3];  // strides inside a half
  for (int64_t d = 2, row = static_cast<int64_t>(size); d >= 0; row *= sizes[d--]) strides[d] = row;
  std::vector<std::byte> half[2];
  half[0].resize(2 * strides[0] * sizes[0]);
  half[1] = half[0];
  const std::byte* from = array.bytes.data();
  for (size_t b = 0; b < c.B; ++b) {
    for (size_t t = 0; t < c.T; ++t) {
      for (size_t h = 0; h < c.H; ++h, from += 2 * size) {
        const size_t index[] = {b, t, h};
        int64_t at = 0;
        for (size_t d = 0; d < 3; ++d) at += d == far ? 0 : index[d] * strides[d];
        std::memcpy(half[index[far]].data() + 2 * at, from, 2 * size);
      }
    }
  }
  const std::byte* near_ptr = simulator.input<std::byte>(half[0], name);
  const std::byte* far_ptr = nullptr;
  std::thread([&] { far_ptr = simulator.input<std::byte>(half[1], name); }).join();
  strides[far] = (reinterpret_cast<intptr_t>(far_ptr) - reinterpret_cast<intptr_t>(near_ptr)) / 2;
  REQUIRE(std::abs(strides[far]) > int64_t{1} << 32);
  return {near_ptr, strides[0], strides[1], strides[2]};
}

/// An operand [B, T, H, size] in the layout of the case.
inline RetentionOperand chunkwise_operand(simt::Simulator& simulator, const ChunkwiseCase& c,
                                          const Array& array, size_t size, const char* name) {
  if (c.layout >= Layout::kFarBatch) return far_operand(simulator, c, array, size, name);
  const size_t gap = c.layout == Layout::kContiguous ? 0 : c.layout == Layout::kNarrow ? 4 : 8;
  const size_t pitch = size + (gap == 8 ? 8 + (8 - size % 8) % 8 : gap);
  RetentionOperand result;
  result.stride_h = static_cast<int64_t>(pitch);
  result.stride_t = result.stride_h * static_cast<int64_t>(gap != 0 ? 2 * c.H : c.H);
  result.stride_b = result.stride_t * static_cast<int64_t>(c.T);
  std::vector<std::byte> spread(c.B * result.stride_b * 2, std::byte{0xff});
  for (size_t i = 0; i < c.B * c.T; ++i) {
    for (size_t h = 0; h < c.H; ++h) {
      std::memcpy(spread.data() + 2 * (i * result.stride_t + h * pitch),
                  array.bytes.data() + 2 * (i * c.H + h) * size, 2 * size);
    }
  }
  result.ptr = simulator.input<std::byte>(spread, name, c.layout == Layout::kNarrow ? 8 : 0);
  return result;
}

/// Returns the parameters of the forward pass of a call, with its inputs on the device.
inline ChunkwiseParams forward_params(simt::Simulator& simulator, const ChunkwiseCase& c,
                                      const ChunkwiseInputs& in) {
  ChunkwiseParams p;
  p.batch = static_cast<int64_t>(c.B);
  p.tokens = static_cast<int64_t>(c.T);
  p.heads = static_cast<int64_t>(c.H);
  p.head_dim_qk = static_cast<int64_t>(c.head_dim_qk());
  p.head_dim_v = static_cast<int64_t>(c.head_dim_v());
  p.dtype = c.dtype;
  p.scale = static_cast<float>(chunkwise_scale(c));
  p.sequences = static_cast<int64_t>(c.sequences());

  p.q = chunkwise_operand(simulator, c, in.q, c.head_dim_qk(), "q");
  p.k = chunkwise_operand(simulator, c, in.k, c.head_dim_qk(), "k");
  p.v = chunkwise_operand(simulator, c, in.v, c.head_dim_v(), "v");

  std::vector<float> log_decay;
  for (size_t h = 0; h < c.H; ++h) log_decay.push_back(c.decay(h));
  p.log_decay_ptr = simulator.input<float>(log_decay, "log_decay");
  if (!c.cu_seqlens.empty()) {
    p.cu_seqlens_ptr = simulator.input<int32_t>(c.cu_seqlens, "cu_seqlens");
  }
  if (c.initial_state) {
    p.initial_state_ptr = simulator.input<float>(in.initial_state, "initial_state", 4);
  }
  return p;
}

/// Calls it as csrc/ops/cuda does: plan, workspace, launch.
inline ChunkwiseRun run_chunkwise(const ChunkwiseCase& c, const ChunkwiseInputs& in,
                                  simt::Options options) {
  options.shared_limit = c.tile == 4 ? kShared86 : kShared80;
  simt::Simulator simulator(options);
  ChunkwiseParams p = forward_params(simulator, c, in);
  const size_t out_size = c.B * c.T * c.H * c.head_dim_v();
  const size_t state_size = c.sequences() * c.H * c.head_dim_qk() * c.head_dim_v();
  auto* out = simulator.output<uint16_t>(out_size, "out");
  p.out_ptr = out;
  p.final_state_ptr = simulator.output<float>(state_size, "final_state");

  // There are so few multiprocessors that the plan cuts nothing. If the case asks for segments, there are so
  // many that the plan cuts, and the case gives the length.
  const DeviceLimits device{80, c.segment != 0 ? 1024 : 1, options.shared_limit};
  ChunkwisePlan plan = chunkwise_plan(p, device, c.shape().chunk, false);
  REQUIRE(plan.unsupported_reason == nullptr);
  REQUIRE(plan.tile == c.tile);
  if (c.segment != 0) {
    plan.segment_length = c.segment;
    const int64_t whole = (p.tokens + c.segment - 1) / c.segment;
    plan.segments = c.cu_seqlens.empty() ? p.batch * whole : p.tokens / c.segment + p.sequences;
    p.workspace_ptr = simulator.workspace<float>(
        plan.segments * p.heads * p.head_dim_qk * p.head_dim_v, "states");
  }
  REQUIRE(launch_chunkwise(p, plan, nullptr) == cudaSuccess);

  ChunkwiseRun run{{}, simulator.finish(), chunkwise_wide(p)};
  run.bits.out.assign(out, out + out_size);
  run.bits.final_state.assign(p.final_state_ptr, p.final_state_ptr + state_size);
  return run;
}

/// A call of the gradients. `tile` is that of the passes of grad_q and grad_k.
struct BackwardCase : ChunkwiseCase {
  bool grad_out = true, grad_final_state = true;
  size_t shared = kShared80;  // shared memory of the device

  std::string name() const {
    return "backward " + ChunkwiseCase::name() + " grads " + std::to_string(grad_out) +
           std::to_string(grad_final_state);
  }
};

struct BackwardInputs : ChunkwiseInputs {
  Array grad_out;
  std::vector<float> grad_final_state;
};

inline BackwardInputs make_backward_inputs(const BackwardCase& c) {
  BackwardInputs in{make_inputs(c), {}, {}};
  if (c.grad_out) {
    in.grad_out = encode(random_values(c.B * c.T * c.H * c.head_dim_v(), 0, 1, 5), c.dtype);
  }
  if (c.grad_final_state) {
    for (const double x :
         random_values(c.sequences() * c.H * c.head_dim_qk() * c.head_dim_v(), 0, 1, 6)) {
      in.grad_final_state.push_back(static_cast<float>(x));
    }
  }
  return in;
}

/// The incoming gradients, on the device.
inline ChunkwiseGradients incoming_gradients(simt::Simulator& simulator, const BackwardCase& c,
                                             const BackwardInputs& in) {
  ChunkwiseGradients grads;
  if (c.grad_out) {
    grads.grad_out = chunkwise_operand(simulator, c, in.grad_out, c.head_dim_v(), "grad_out");
  }
  if (c.grad_final_state) {
    grads.grad_final_state_ptr = simulator.input<float>(in.grad_final_state, "grad_final_state", 4);
  }
  return grads;
}

}  // namespace retnet::kernels::cuda
