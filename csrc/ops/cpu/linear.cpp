// SPDX-License-Identifier: Apache-2.0
#include "ops/linear.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <c10/util/env.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/cpu/isa/registry.h"
#include "ops/cpu/instruction_set.h"
#include "ops/cpu/parallel.h"

namespace retnet::ops {
namespace {

using retnet::kernels::cpu::BFloat16;
using retnet::kernels::cpu::kLinearFewRows;
using retnet::kernels::cpu::kLinearRowMultiple;

constexpr int64_t kWeightsPerTask = 65536;

bool is_known_on_cpu(const at::Tensor& x, at::ScalarType dtype) {
  return x.device().is_cpu() && x.scalar_type() == dtype && !x.is_nested() &&
         x.layout() == at::kStrided && !x.unsafeGetTensorImpl()->has_symbolic_sizes_strides();
}

/// Returns the environment variable RETNET_CPU_LINEAR: "0", "1", or "" if it is not set.
std::string linear_setting() {
  const auto value = c10::utils::get_env("RETNET_CPU_LINEAR").value_or("");
  TORCH_CHECK_VALUE(value.empty() || value == "0" || value == "1",
                    "RETNET_CPU_LINEAR must be 0 or 1, got ", value);
  return value;
}

// A few tokens of bfloat16
// -------------------------------------------------------------------------------------------------

const BFloat16* elements(const at::Tensor& x) {
  return static_cast<const BFloat16*>(x.const_data_ptr());
}

bool supports_few_rows(const at::Tensor& x, const at::Tensor& weight) {
  return is_known_on_cpu(x, at::kBFloat16) && is_known_on_cpu(weight, at::kBFloat16) &&
         x.dim() >= 1 && weight.dim() == 2 && x.numel() <= kLinearFewRows * x.size(-1) &&
         x.numel() > 0 && weight.numel() > 0 && weight.stride(1) == 1 && linear_setting() != "0";
}

at::Tensor linear_by_few_rows(const at::Tensor& x, const at::Tensor& weight,
                              const std::optional<at::Tensor>& bias) {
  const auto& set = cpu::instruction_set();
  const int64_t in_features = weight.size(1), out_features = weight.size(0),
                tokens = x.numel() / in_features;
  const int64_t size = retnet::kernels::cpu::linear_token_size(in_features);
  const auto dense_x = x.contiguous();
  const auto packed_x = std::make_unique_for_overwrite<float[]>(tokens * size);
  for (int64_t t = 0; t < tokens; ++t) {
    set.pack_linear_token(
        {in_features, elements(dense_x) + t * in_features, packed_x.get() + t * size});
  }
  const auto dense_bias = bias ? bias->contiguous() : at::Tensor();
  auto sizes = x.sizes().vec();
  sizes.back() = out_features;
  auto out = at::empty(sizes, x.options());
  auto* out_ptr = static_cast<BFloat16*>(out.mutable_data_ptr());
  const int64_t stride = weight.stride(0);
  // The number of rows of the weight that a thread takes at once.
  const int64_t rows =
      std::max<int64_t>(1, kWeightsPerTask / in_features / kLinearRowMultiple) * kLinearRowMultiple;
  cpu::run_tasks((out_features + rows - 1) / rows, 0, [&](int64_t task, void*) {
    const int64_t first = task * rows;
    set.linear({tokens, in_features, std::min(rows, out_features - first), packed_x.get(),
                elements(weight) + first * stride, stride,
                bias ? elements(dense_bias) + first : nullptr, out_ptr + first, out_features});
  });
  return out;
}

// Many tokens of float32
// -------------------------------------------------------------------------------------------------

// oneDNN copies the weight into a layout of its own. The copy does not pay for small products.
constexpr int64_t kOnednnRows = 128, kOnednnChannels = 256;

using Scalars = c10::List<std::optional<at::Scalar>>;
using OnednnLinear = at::Tensor(const at::Tensor&, const at::Tensor&,
                                const std::optional<at::Tensor>&, std::string_view, Scalars,
                                std::optional<std::string_view>);

/// Returns the operator of torch, or nothing if this build of torch does not have it.
const std::optional<c10::TypedOperatorHandle<OnednnLinear>>& onednn_linear() {
  static const auto op = [] {
    const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
    return found && found->hasKernelForDispatchKey(c10::DispatchKey::CPU)
               ? std::optional(found->typed<OnednnLinear>())
               : std::nullopt;
  }();
  return op;
}

bool supports_onednn(const at::Tensor& x, const at::Tensor& weight) {
  if (!is_known_on_cpu(x, at::kFloat) || !is_known_on_cpu(weight, at::kFloat) || x.dim() < 2 ||
      weight.dim() != 2 || x.numel() < kOnednnRows * x.size(-1) ||
      std::min(weight.size(0), weight.size(1)) < kOnednnChannels || !onednn_linear() ||
      !at::globalContext().userEnabledMkldnn()) {
    return false;
  }
  const auto setting = linear_setting();
  return setting == "1" ||
         (setting.empty() && at::hasMKL() && retnet::kernels::cpu::is_amd_with_avx512());
}

at::Tensor linear_by_onednn(const at::Tensor& x, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias) {
  const int64_t out = weight.size(0), in = weight.size(1);
  const bool by_rows = weight.stride(1) == 1 && weight.stride(0) >= in;
  const bool by_columns = weight.stride(0) == 1 && weight.stride(1) >= out;
  const auto dense_weight = by_rows || by_columns ? weight : weight.contiguous();
  const auto dense_bias = bias ? std::optional(bias->contiguous()) : std::nullopt;
  return onednn_linear()->call(x, dense_weight, dense_bias, "none", Scalars(), "");
}

at::Tensor linear_cpu(const at::Tensor& x, const at::Tensor& weight,
                      const std::optional<at::Tensor>& bias) {
  check_linear(x, weight, bias);
  if (supports_few_rows(x, weight)) return linear_by_few_rows(x, weight, bias);
  if (supports_onednn(x, weight)) return linear_by_onednn(x, weight, bias);
  return at::linear(x, weight, bias);
}

}  // namespace

bool has_faster_linear(const at::Tensor& x, const at::Tensor& weight, bool needs_gradient) {
  return supports_onednn(x, weight) || (!needs_gradient && supports_few_rows(x, weight));
}

int64_t linear_few_rows() { return kLinearFewRows; }

TORCH_LIBRARY_IMPL(retnet, CPU, m) { m.impl("linear", linear_cpu); }

}  // namespace retnet::ops
