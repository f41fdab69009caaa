// SPDX-License-Identifier: Apache-2.0
//
// Autocast. The tokens (q, k, v, x, gate) are cast to autocast's dtype; log_decay, states,
// positions, frequencies, weights and biases are left alone: the operators accept and keep them in
// float32 beside bfloat16 or float16 tokens.
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "ops/retention.h"

namespace retnet::ops {
namespace {

/// x in autocast's dtype for x's device; float64 is left alone, as everywhere in autocast.
at::Tensor cast(const at::Tensor& x) {
  const auto device = x.device().type();
  return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), x, device);
}

/// Calls on, below autocast.
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

}  // namespace

TORCH_LIBRARY_IMPL(retnet, AutocastCPU, m) { m.impl("retention", retention_autocast); }
TORCH_LIBRARY_IMPL(retnet, AutocastCUDA, m) { m.impl("retention", retention_autocast); }

}  // namespace retnet::ops
