// SPDX-License-Identifier: Apache-2.0
//
// What retention_step and multi_scale_retention_step share on the CPU.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "ops/cpu/instruction_set.h"

namespace retnet::ops::cpu {

/// Whether the kernel supports a decode step: tokens are float32 or have 16 bits, and the rows of
/// the state are dense.
inline bool supports_decode_step(const at::Tensor& q, const at::Tensor& state) {
  return q.scalar_type() != at::kDouble && state.dim() == 4 && state.stride(3) == 1 &&
         state.numel() > 0 && q.numel() > 0;
}

/// The rows of a tensor [.., n] as floats. Rows of float32 are copied too: the copy is faster from
/// memory than the kernel, which takes four values of q and k at a time.
class FloatRows {
 public:
  FloatRows(const retnet::kernels::cpu::InstructionSet& set, const at::Tensor& x)
      : x_(x.contiguous()), n_(x.size(-1)), kernels_(kernels_for(set, x.scalar_type())) {}
  void load(int64_t row, float* floats) const {
    const auto* rows = static_cast<const char*>(x_.const_data_ptr());
    kernels_.to_floats(rows + row * n_ * x_.element_size(), n_, floats);
  }
  /// The tensor must have been contiguous.
  void store(int64_t row, const float* floats) const {
    auto* rows = static_cast<char*>(x_.mutable_data_ptr());
    kernels_.from_floats(floats, n_, rows + row * n_ * x_.element_size());
  }

 private:
  at::Tensor x_;
  int64_t n_;
  const retnet::kernels::cpu::KernelTable& kernels_;
};

/// Returns out [B, H, Dv] of q's dtype. For each row b H + h it calls
///     body(row, params, decode_step, workspace)
/// on some thread, with q, k and v of the row in params as floats and a workspace of so many
/// floats. body leaves the row of out in params.out; decode_step(params) runs the kernel. The rows
/// of out that slots skip are zeros.
template <class Body>
at::Tensor run_decode_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const at::Tensor& log_decay, const at::Tensor& state,
                           std::optional<double> scale, const std::optional<at::Tensor>& slots,
                           int64_t workspace_floats, const Body& body) {
  const auto& set = instruction_set();
  const int64_t B = q.size(0), H = q.size(1), Dk = q.size(2), Dv = v.size(2);
  auto out = at::empty({B, H, Dv}, q.options());
  const FloatRows q_rows(set, q), k_rows(set, k), v_rows(set, v), out_rows(set, out);
  const auto log_decays = log_decay.detach().contiguous();
  const auto dense_slots = slots ? slots->contiguous() : at::Tensor();
  const auto factor = static_cast<float>(scale.value_or(1 / std::sqrt(static_cast<double>(Dk))));
  auto* states = state.mutable_data_ptr<float>();
  at::parallel_for(0, B * H, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> memory(2 * Dk + 2 * Dv + workspace_floats);
    float *const q_row = memory.data(), *const k_row = q_row + Dk, *const v_row = k_row + Dk,
                 *const out_row = v_row + Dv, *const workspace = out_row + Dv;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / H, h = row % H;
      const int64_t slot = slots ? dense_slots.const_data_ptr<int32_t>()[b] : b;
      if (slot < 0) {
        std::fill_n(out_row, Dv, 0.0F);
        out_rows.store(row, out_row);
        continue;
      }
      q_rows.load(row, q_row);
      k_rows.load(row, k_row);
      v_rows.load(row, v_row);
      const double g = log_decays.const_data_ptr<float>()[h];
      retnet::kernels::cpu::DecodeStepParams p{};
      p.head_dim_qk = Dk;
      p.head_dim_v = Dv;
      p.q = q_row;
      p.k = k_row;
      p.v = v_row;
      p.state = states + slot * state.stride(0) + h * state.stride(1);
      p.state_stride = state.stride(2);
      p.gamma_is_zero = g == -std::numeric_limits<double>::infinity();
      p.power_minus_one = static_cast<float>(std::expm1(g));
      p.scale = factor;
      p.out = out_row;
      body(row, p, set.decode_step, workspace);
      out_rows.store(row, out_row);
    }
  });
  return out;
}

}  // namespace retnet::ops::cpu
