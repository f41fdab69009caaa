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

/// Whether the kernel supports a decode step: tokens are float32 or have 16 bits, and the last
/// dimension of the state is dense.
inline bool supports_decode_step(const at::Tensor& q, const at::Tensor& state) {
  return q.scalar_type() != at::kDouble && state.dim() == 4 && state.stride(3) == 1 &&
         state.numel() > 0 && q.numel() > 0;
}

/// The tokens of all heads of a tensor [B, H, n], as floats. float32 is copied too: the copy reads
/// memory faster than the kernel, which takes four values of q and k at a time.
class FloatTokens {
 public:
  FloatTokens(const retnet::kernels::cpu::InstructionSet& set, const at::Tensor& x)
      : x_(x.contiguous()), n_(x.size(-1)), kernels_(kernels_for(set, x.scalar_type())) {}
  void load(int64_t b, int64_t h, float* floats) const {
    const auto* tokens = static_cast<const char*>(x_.const_data_ptr());
    kernels_.to_floats(tokens + offset(b, h), n_, floats);
  }
  /// The tensor must have been contiguous.
  void store(int64_t b, int64_t h, const float* floats) const {
    auto* tokens = static_cast<char*>(x_.mutable_data_ptr());
    kernels_.from_floats(floats, n_, tokens + offset(b, h));
  }

 private:
  int64_t offset(int64_t b, int64_t h) const {
    return (b * x_.size(1) + h) * n_ * static_cast<int64_t>(x_.element_size());
  }

  at::Tensor x_;
  int64_t n_;
  const retnet::kernels::cpu::KernelTable& kernels_;
};

/// Returns out [B, H, Dv] of q's dtype. For each batch entry b and head h it calls
///     body(b, h, params, decode_step, workspace)
/// on some thread. params holds q, k and v as floats, and `workspace` has `workspace_floats` floats.
/// body leaves its result in params.out; decode_step(params) runs the kernel. The results of batch
/// entries that slots skip are zeros.
template <class Body>
at::Tensor run_decode_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           const at::Tensor& log_decay, const at::Tensor& state,
                           std::optional<double> scale, const std::optional<at::Tensor>& slots,
                           int64_t workspace_floats, const Body& body) {
  const auto& set = instruction_set();
  const int64_t B = q.size(0), H = q.size(1), Dk = q.size(2), Dv = v.size(2);
  auto out = at::empty({B, H, Dv}, q.options());
  const FloatTokens q_tokens(set, q), k_tokens(set, k), v_tokens(set, v), out_tokens(set, out);
  const auto log_decays = log_decay.detach().contiguous();
  const auto dense_slots = slots ? slots->contiguous() : at::Tensor();
  const auto factor = static_cast<float>(scale.value_or(1 / std::sqrt(static_cast<double>(Dk))));
  auto* states = state.mutable_data_ptr<float>();
  at::parallel_for(0, B * H, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> memory(2 * Dk + 2 * Dv + workspace_floats);
    float *const own_q = memory.data(), *const own_k = own_q + Dk, *const own_v = own_k + Dk,
                 *const own_out = own_v + Dv, *const workspace = own_out + Dv;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / H, h = i % H;
      const int64_t slot = slots ? dense_slots.const_data_ptr<int32_t>()[b] : b;
      if (slot < 0) {
        std::fill_n(own_out, Dv, 0.0F);
        out_tokens.store(b, h, own_out);
        continue;
      }
      q_tokens.load(b, h, own_q);
      k_tokens.load(b, h, own_k);
      v_tokens.load(b, h, own_v);
      const double g = log_decays.const_data_ptr<float>()[h];
      retnet::kernels::cpu::DecodeStepParams p{};
      p.head_dim_qk = Dk;
      p.head_dim_v = Dv;
      p.q = own_q;
      p.k = own_k;
      p.v = own_v;
      p.state = states + slot * state.stride(0) + h * state.stride(1);
      p.state_stride = state.stride(2);
      p.gamma_is_zero = g == -std::numeric_limits<double>::infinity();
      p.power_minus_one = static_cast<float>(std::expm1(g));
      p.scale = factor;
      p.out = own_out;
      body(b, h, p, set.decode_step, workspace);
      out_tokens.store(b, h, own_out);
    }
  });
  return out;
}

}  // namespace retnet::ops::cpu
