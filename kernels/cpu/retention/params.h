// SPDX-License-Identifier: Apache-2.0
//
// The chunkwise form of retention on the CPU: one head of one sequence, or a slice of its columns,
// by one thread, with the state in cache from the first token to the last. No torch header; strides
// in elements; the last dimension is dense.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/cross_entropy/params.h"
#include "kernels/cpu/linear/params.h"
#include "kernels/cpu/norm/params.h"
#include "kernels/cpu/retention/decode_step_params.h"
#include "kernels/cpu/rotary/params.h"
#include "kernels/cpu/scalar.h"

namespace retnet::kernels::cpu {

constexpr int64_t kChunk = 64;

/// One head's powers of gamma. No exponent is negative, and gamma^0 is 1 for every gamma.
struct DecayTables {
  bool is_zero;          // gamma = 0: the old state is dropped, not multiplied: NaN * 0 is NaN
  const float* power;    // [kChunk + 1] gamma^n
  const float* change;   // [kChunk + 1] gamma^n - 1, by which a state decays
  const float* readout;  // [kChunk]     scale gamma^(i+1)
  const float* row;      // [2 kChunk]   scale gamma^(kChunk-1-x), then zeros: row i of the scores
                         //              starts at row + kChunk - 1 - i
  const float* column;   // [2 kChunk]   kChunk - 1 zeros, then scale gamma^n: row j of the scores'
                         //              transpose starts at column + kChunk - 1 - j
  // For the derivative in log_decay:
  const float* power_slope;  // [kChunk + 1] n gamma^n
  const float* row_slope;    // [2 kChunk]   row's entries times their exponents
};

/// Rows of tokens; null = all zeros.
struct TokenRows {
  const void* ptr = nullptr;
  int64_t stride = 0;
};

/// y_i = scale sum_{j <= i} gamma^(i-j) (a_i . b_j) c_j + scale gamma^(i+1) a_i S, and S moves on:
/// out by (q, k, v), the gradient of q by (grad_out, v, k) and the transposed state.
struct ReadoutParams {
  int64_t tokens, inner, outer;
  TokenRows a, b, c;  // [tokens, inner], [tokens, inner], [tokens, outer]
  void* y = nullptr;  // [tokens, outer]; null: not asked for
  int64_t y_stride = 0;
  // [inner, outer], strides of both dimensions; null = zeros / not asked for
  const float* initial = nullptr;
  int64_t initial_inner = 0, initial_outer = 0;
  float* final_state = nullptr;
  int64_t final_inner = 0, final_outer = 0;
  DecayTables decay{};
  // The gradient of log_decay, sum_i q_i . dy_i/dlog_decay + <dS/dlog_decay, grad_state>:
  double* slope = nullptr;  // written; null: not asked for
  TokenRows q;              // [tokens, outer]
  const float* grad_state = nullptr;
  int64_t grad_state_inner = 0, grad_state_outer = 0;
};

/// The gradients of k and v, with the adjoint of the state X going backward in time:
///     dv_j = scale sum_{i >= j} gamma^(i-j) (q_i . k_j) do_i + gamma^(L-1-j) k_j X
///     dk_j = scale sum_{i >= j} gamma^(i-j) (do_i . v_j) q_i + gamma^(L-1-j) X v_j
///     X   <- gamma^L X + scale sum_i gamma^(i+1) q_i^T do_i
/// A slice of v's columns may be computed alone where dk is not asked for, a slice of k's where dv
/// is not.
struct UpdateParams {
  int64_t tokens, inner, outer;
  TokenRows q, k, v, grad_out;  // [tokens, inner] twice, [tokens, outer] twice
  void* grad_k = nullptr;       // [tokens, inner]; null: not asked for
  void* grad_v = nullptr;       // [tokens, outer]; null: not asked for
  int64_t grad_k_stride = 0, grad_v_stride = 0;
  const float* grad_state = nullptr;  // [inner, outer]; null = zeros
  int64_t grad_state_inner = 0, grad_state_outer = 0;
  float* grad_initial = nullptr;  // [inner, outer], dense columns; null: not asked for
  int64_t grad_initial_inner = 0;
  DecayTables decay{};
};

/// The kernels of one dtype on one instruction set. Each writes what is asked for, all of it. Those
/// of retention work in `scratch`, of as many bytes as the function beside it says.
struct Kernels {
  size_t (*readout_scratch)(const ReadoutParams&);
  void (*readout)(const ReadoutParams&, void* scratch);
  size_t (*update_scratch)(const UpdateParams&);
  void (*update)(const UpdateParams&, void* scratch);
  void (*gated_norm)(const GatedNormParams&);
  void (*gated_norm_grad)(const GatedNormGradParams&);
  void (*rotary)(const RotaryParams&);
  double (*cross_entropy)(const CrossEntropyParams&);
  /// A dense row [channels] of the kernels' dtype, to floats and, rounded, from them.
  void (*to_floats)(const void* row, int64_t channels, float* floats);
  void (*from_floats)(const float* floats, int64_t channels, void* row);
};

/// The kernels of an instruction set.
struct InstructionSet {
  const char* name;
  bool (*is_supported)();
  Kernels float32, bfloat16, float16;
  void (*cos_sin)(const CosSinParams&);
  void (*step)(const StepParams&);
  void (*linear_token)(const LinearTokenParams&);
  void (*linear)(const LinearParams&);
  /// Multiply-adds between registers, of floats and of what bfloat16 is multiplied by; `steps` of them
  /// side by side, *sink keeps them. Gives the floating-point operations: what a kernel's are a share of.
  double (*peak_float32)(int64_t steps, float* sink);
  double (*peak_bfloat16)(int64_t steps, float* sink);
};

}  // namespace retnet::kernels::cpu
