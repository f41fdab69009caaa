// SPDX-License-Identifier: Apache-2.0
#include "ops/linear_step.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <c10/util/env.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>

#include "ops/cpu/instruction_set.h"
#include "ops/cpu/parallel.h"

namespace retnet::ops {
namespace {

using retnet::cpu::BFloat16;
using retnet::cpu::kLinearPart;

constexpr int64_t kPart = 65536;  // elements of the weight that a thread takes at once

bool is_on() {
  const auto asked = c10::utils::get_env("RETNET_CPU_LINEAR");
  return !asked || *asked != "0";
}

bool takes(const at::Tensor& x, const at::Tensor& weight) {
  return has_linear_step(x, weight) && weight.stride(1) == 1 && x.numel() > 0 &&
         weight.numel() > 0 && is_on();
}

const BFloat16* elements(const at::Tensor& x) {
  return static_cast<const BFloat16*>(x.const_data_ptr());
}

at::Tensor linear_step_cpu(const at::Tensor& x, const at::Tensor& weight,
                           const std::optional<at::Tensor>& bias) {
  check_linear_step(x, weight, bias);
  if (!takes(x, weight)) return at::linear(x, weight, bias);
  const auto& set = cpu::instruction_set();
  const int64_t in = weight.size(1), out = weight.size(0), tokens = x.numel() / in;
  const int64_t size = retnet::cpu::linear_token_size(in);
  const auto rows = x.contiguous();
  const auto floats = std::make_unique_for_overwrite<float[]>(tokens * size);
  for (int64_t t = 0; t < tokens; ++t) {
    set.linear_token({in, elements(rows) + t * in, floats.get() + t * size});
  }
  const auto dense_bias = bias ? bias->contiguous() : at::Tensor();
  auto sizes = x.sizes().vec();
  sizes.back() = out;
  auto y = at::empty(sizes, x.options());
  auto* result = static_cast<BFloat16*>(y.mutable_data_ptr());
  const int64_t stride = weight.stride(0);
  const int64_t part = std::max<int64_t>(1, kPart / in / kLinearPart) * kLinearPart;
  cpu::run_tasks((out + part - 1) / part, 0, [&](int64_t task, void*) {
    const int64_t first = task * part;
    set.linear({tokens, in, std::min(part, out - first), floats.get(),
                elements(weight) + first * stride, stride,
                bias ? elements(dense_bias) + first : nullptr, result + first, out});
  });
  return y;
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CPU, m) { m.impl("linear_step", linear_step_cpu); }

}  // namespace retnet::ops
