// SPDX-License-Identifier: Apache-2.0
//
// What the two steps of decoding share on the CPU.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "kernels/cpu/retention/params.h"
#include "ops/cpu/instruction_set.h"

namespace retnet::ops::cpu {

/// The kernel takes float32 and 16-bit tokens and a state whose rows are dense.
inline bool takes_step(const at::Tensor& q, const at::Tensor& state) {
  return q.scalar_type() != at::kDouble && state.dim() == 4 && state.stride(3) == 1 &&
         state.numel() > 0 && q.numel() > 0;
}

/// The rows of a tensor [.., n] as floats. float32's are copied too: from memory a copy is faster
/// than the step, which takes four values of q and k at a time.
class FloatRows {
 public:
  FloatRows(const retnet::kernels::cpu::InstructionSet& set, const at::Tensor& x)
      : x_(x.contiguous()), n_(x.size(-1)), kernels_(kernels_of(set, x.scalar_type())) {}
  void load(int64_t row, float* floats) const {
    const auto* rows = static_cast<const char*>(x_.const_data_ptr());
    kernels_.to_floats(rows + row * n_ * x_.element_size(), n_, floats);
  }
  /// Of a tensor that was contiguous before.
  void store(int64_t row, const float* floats) const {
    auto* rows = static_cast<char*>(x_.mutable_data_ptr());
    kernels_.from_floats(floats, n_, rows + row * n_ * x_.element_size());
  }

 private:
  at::Tensor x_;
  int64_t n_;
  const retnet::kernels::cpu::Kernels& kernels_;
};

/// out [B, H, Dv], like q: for each row b H + h, side by side, body(row, params, run, scratch), with q,
/// k and v in params as floats and scratch of so many floats. body leaves the row in params.out;
/// run(params) makes the step. Rows that slots skip are zeros.
template <class Body>
at::Tensor each_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& log_decay, const at::Tensor& state,
                     std::optional<double> scale, const std::optional<at::Tensor>& slots,
                     int64_t scratch_floats, const Body& body) {
  const auto& set = instruction_set();
  const int64_t B = q.size(0), H = q.size(1), K = q.size(2), V = v.size(2);
  auto out = at::empty({B, H, V}, q.options());
  const FloatRows queries(set, q), keys(set, k), values(set, v), outs(set, out);
  const auto decays = log_decay.detach().contiguous();
  const auto rows = slots ? slots->contiguous() : at::Tensor();
  const auto factor = static_cast<float>(scale.value_or(1 / std::sqrt(static_cast<double>(K))));
  auto* states = state.mutable_data_ptr<float>();
  at::parallel_for(0, B * H, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> memory(2 * K + 2 * V + scratch_floats);
    float *const q_row = memory.data(), *const k_row = q_row + K, *const v_row = k_row + K,
                 *const out_row = v_row + V, *const scratch = out_row + V;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / H, h = row % H;
      const int64_t slot = slots ? rows.const_data_ptr<int32_t>()[b] : b;
      if (slot < 0) {
        std::fill_n(out_row, V, 0.0F);
        outs.store(row, out_row);
        continue;
      }
      queries.load(row, q_row);
      keys.load(row, k_row);
      values.load(row, v_row);
      const double g = decays.const_data_ptr<float>()[h];
      retnet::kernels::cpu::StepParams p{};
      p.inner = K;
      p.outer = V;
      p.q = q_row;
      p.k = k_row;
      p.v = v_row;
      p.state = states + slot * state.stride(0) + h * state.stride(1);
      p.state_stride = state.stride(2);
      p.is_zero = g == -std::numeric_limits<double>::infinity();
      p.change = static_cast<float>(std::expm1(g));
      p.scale = factor;
      p.out = out_row;
      body(row, p, set.step, scratch);
      outs.store(row, out_row);
    }
  });
  return out;
}

}  // namespace retnet::ops::cpu
