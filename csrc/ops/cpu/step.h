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

#include "cpu/retention.h"
#include "ops/cpu/instruction_set.h"

namespace retnet::ops::cpu {

/// The kernel takes float32 and 16-bit tokens and a state whose rows are dense.
inline bool takes_step(const at::Tensor& q, const at::Tensor& state) {
  return q.scalar_type() != at::kDouble && state.dim() == 4 && state.stride(3) == 1 &&
         state.numel() > 0 && q.numel() > 0;
}

/// The rows of a tensor [.., n] as floats: themselves, or converted one at a time.
class FloatRows {
 public:
  explicit FloatRows(const at::Tensor& x)
      : x_(x.contiguous()),
        n_(x.size(-1)),
        is_float_(x.scalar_type() == at::kFloat),
        kernels_(kernels_of(instruction_set(), x.scalar_type())) {}
  /// The row, or its floats in memory [n].
  const float* get(int64_t row, float* memory) const {
    if (is_float_) return static_cast<const float*>(at(row));
    kernels_.to_floats(at(row), n_, memory);
    return memory;
  }
  /// Where to write a row before set(row, that): in place, or memory [n].
  float* to_set(int64_t row, float* memory) const {
    return is_float_ ? static_cast<float*>(at(row)) : memory;
  }
  void set(int64_t row, const float* floats) const {
    if (!is_float_) kernels_.from_floats(floats, n_, at(row));
  }

 private:
  void* at(int64_t row) const {
    return static_cast<char*>(x_.mutable_data_ptr()) + row * n_ * x_.element_size();
  }
  at::Tensor x_;
  int64_t n_;
  bool is_float_;
  const retnet::cpu::Kernels& kernels_;
};

/// out [B, H, Dv], like q: for each row b H + h, side by side, body(row, params, run, scratch), with
/// scratch of so many floats, where run(params) makes the step as it is. Zeros where slots skip.
template <class Body>
at::Tensor each_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const at::Tensor& log_decay, const at::Tensor& state,
                     std::optional<double> scale, const std::optional<at::Tensor>& slots,
                     int64_t scratch_floats, const Body& body) {
  const auto& set = instruction_set();
  const int64_t B = q.size(0), H = q.size(1), K = q.size(2), V = v.size(2);
  auto out = at::empty({B, H, V}, q.options());
  const FloatRows queries(q), keys(k), values(v), outs(out);
  const auto decays = log_decay.detach().contiguous();
  const auto rows = slots ? slots->contiguous() : at::Tensor();
  const auto factor = static_cast<float>(scale.value_or(1 / std::sqrt(static_cast<double>(K))));
  auto* states = state.mutable_data_ptr<float>();
  at::parallel_for(0, B * H, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> memory(2 * K + 2 * V + scratch_floats);
    float* const scratch = memory.data() + 2 * K + 2 * V;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / H, h = row % H;
      const int64_t slot = slots ? rows.const_data_ptr<int32_t>()[b] : b;
      float* const result = outs.to_set(row, memory.data() + 2 * K + V);
      if (slot < 0) {
        std::fill_n(result, V, 0.0F);
        outs.set(row, result);
        continue;
      }
      const double g = decays.const_data_ptr<float>()[h];
      retnet::cpu::StepParams p{};
      p.inner = K;
      p.outer = V;
      p.q = queries.get(row, memory.data());
      p.k = keys.get(row, memory.data() + K);
      p.v = values.get(row, memory.data() + 2 * K);
      p.state = states + slot * state.stride(0) + h * state.stride(1);
      p.state_stride = state.stride(2);
      p.is_zero = g == -std::numeric_limits<double>::infinity();
      p.change = static_cast<float>(std::expm1(g));
      p.scale = factor;
      p.out = result;
      body(row, p, set.step, scratch);
      outs.set(row, result);
    }
  });
  return out;
}

}  // namespace retnet::ops::cpu
