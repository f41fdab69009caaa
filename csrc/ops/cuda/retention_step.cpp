// SPDX-License-Identifier: Apache-2.0
#include "ops/retention_step.h"

#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "ops/composite/retention_step.h"
#include "ops/cuda/decode_step.h"
#include "ops/state.h"

namespace retnet::ops {
namespace {

at::Tensor retention_step_cuda(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const at::Tensor& log_decay, const at::Tensor& state,
                               std::optional<double> scale,
                               const std::optional<at::Tensor>& slots) {
  constexpr auto op = "retention_step";
  check_retention_step(op, q, k, v, log_decay, state, slots);
  const c10::cuda::CUDAGuard guard(q.device());
  auto launch = cuda::prepare_decode_step(q, k, v, log_decay, state, scale, slots);
  if (!launch) return composite::retention_step(q, k, v, log_decay, state, scale, slots);
  check_state_memory(op, state, {{"q", q}, {"k", k}, {"v", v}, {"log_decay", log_decay}});
  return cuda::run(*launch, v);
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CUDA, m) { m.impl("retention_step", retention_step_cuda); }

}  // namespace retnet::ops
