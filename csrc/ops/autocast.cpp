// SPDX-License-Identifier: Apache-2.0
//
// What the operators do under autocast. They cast the tokens (q, k, v, x, gate) to the dtype of
// autocast. They leave log_decay, states, positions, frequencies, weights and biases alone. These
// may be float32 beside bfloat16 or float16 tokens. linear casts all of its arguments, as torch's
// linear does.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "ops/gated_group_norm.h"
#include "ops/linear.h"
#include "ops/multi_scale_retention_step.h"
#include "ops/retention.h"
#include "ops/retention_step.h"
#include "ops/rotary.h"

namespace retnet::ops {
namespace {

/// Casts x to the dtype of autocast on the device of x. float64 is left alone, as everywhere in
/// autocast.
at::Tensor cast(const at::Tensor& x) {
  const auto device = x.device().type();
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), x, device);
}

/// While an object of this class exists, calls on the device of x skip autocast.
struct BelowAutocast {
  explicit BelowAutocast(const at::Tensor& x)
      : guard(at::autocast::get_autocast_dispatch_key_from_device_type(x.device().type())) {}
  c10::impl::ExcludeDispatchKeyGuard guard;
};

std::tuple<at::Tensor, at::Tensor> retention_autocast(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& log_decay,
    const std::optional<at::Tensor>& initial_state, std::optional<double> scale,
    std::string_view form, std::optional<int64_t> chunk_size,
    const std::optional<at::Tensor>& cu_seqlens) {
  const BelowAutocast below(q);
  return retention(cast(q), cast(k), cast(v), log_decay, initial_state, scale, form, chunk_size,
                   cu_seqlens);
}

at::Tensor retention_step_autocast(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const at::Tensor& log_decay, const at::Tensor& state,
                                   std::optional<double> scale,
                                   const std::optional<at::Tensor>& slots) {
  const BelowAutocast below(q);
  return retention_step(cast(q), cast(k), cast(v), log_decay, state, scale, slots);
}

std::tuple<at::Tensor, at::Tensor> rotary_autocast(const at::Tensor& q, const at::Tensor& k,
                                                   const at::Tensor& positions,
                                                   const at::Tensor& frequencies,
                                                   std::string_view style) {
  const BelowAutocast below(q);
  return rotary(cast(q), cast(k), positions, frequencies, style);
}

at::Tensor gated_group_norm_autocast(const at::Tensor& x, const std::optional<at::Tensor>& gate,
                                     const std::optional<at::Tensor>& weight,
                                     const std::optional<at::Tensor>& bias, double eps,
                                     std::string_view norm) {
  const BelowAutocast below(x);
  const auto cast_gate = gate ? std::optional(cast(*gate)) : std::nullopt;
  return gated_group_norm(cast(x), cast_gate, weight, bias, eps, norm);
}

at::Tensor linear_autocast(const at::Tensor& x, const at::Tensor& weight,
                           const std::optional<at::Tensor>& bias) {
  const BelowAutocast below(x);
  return ops::linear(cast(x), cast(weight), bias ? std::optional(cast(*bias)) : std::nullopt);
}

at::Tensor multi_scale_retention_step_autocast(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& gate,
    const at::Tensor& log_decay, const at::Tensor& state, const at::Tensor& positions,
    const at::Tensor& frequencies, const std::optional<at::Tensor>& weight,
    const std::optional<at::Tensor>& bias, double eps, std::string_view norm,
    std::string_view style, std::optional<double> scale, const std::optional<at::Tensor>& slots) {
  const BelowAutocast below(q);
  return multi_scale_retention_step(cast(q), cast(k), cast(v), cast(gate), log_decay, state,
                                    positions, frequencies, weight, bias, eps, norm, style, scale,
                                    slots);
}

void register_autocast(torch::Library& m) {
  m.impl("gated_group_norm", gated_group_norm_autocast);
  m.impl("linear", linear_autocast);
  m.impl("multi_scale_retention_step", multi_scale_retention_step_autocast);
  m.impl("retention", retention_autocast);
  m.impl("retention_step", retention_step_autocast);
  m.impl("rotary", rotary_autocast);
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, AutocastCPU, m) { register_autocast(m); }
TORCH_LIBRARY_IMPL(retnet, AutocastCUDA, m) { register_autocast(m); }

}  // namespace retnet::ops
