// SPDX-License-Identifier: Apache-2.0
#include "ops/gated_group_norm.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "ops/check.h"
#include "ops/composite/gated_group_norm.h"
#include "ops/cpu/affine.h"
#include "ops/cpu/empty_output.h"
#include "ops/cpu/instruction_set.h"
#include "ops/cpu/parallel.h"

namespace retnet::ops {
namespace {

using retnet::kernels::cpu::Norm;

// Each task also has its own partial sums of the gradients of weight and bias.
constexpr int64_t kTokensPerTask = 32;

/// A contiguous tensor [..., H, Dv]: the tokens of all heads as the kernel takes them, one by one.
struct DenseTokens {
  explicit DenseTokens(const std::optional<at::Tensor>& x) {
    if (!x || !x->defined()) return;
    tensor = x->contiguous();
    heads = x->size(-2);
    head_bytes = x->size(-1) * static_cast<int64_t>(x->element_size());
  }
  /// The Dv channels of a token in a head; null if the tensor is absent.
  const void* at(int64_t token, int64_t head) const {
    if (!tensor.defined()) return nullptr;
    return static_cast<const char*>(tensor.const_data_ptr()) + (token * heads + head) * head_bytes;
  }
  void* mutable_at(int64_t token, int64_t head) const { return const_cast<void*>(at(token, head)); }
  at::Tensor tensor;
  int64_t heads = 0, head_bytes = 0;
};

/// A call that the kernel supports.
struct Call {
  Call(const at::Tensor& x_, const std::optional<at::Tensor>& gate_,
       const std::optional<at::Tensor>& weight_, const std::optional<at::Tensor>& bias_,
       double eps_, std::string_view norm_)
      : kernels(cpu::kernels_for(cpu::instruction_set(), x_.scalar_type())),
        x(x_),
        gate(gate_),
        weight(weight_),
        bias(bias_),
        heads(x_.size(-2)),
        head_dim_v(x_.size(-1)),
        tokens(x_.numel() / (heads * head_dim_v)),
        norm(norm_ == "layer" ? Norm::kLayer : Norm::kRms),
        eps(static_cast<float>(eps_)) {}

  retnet::kernels::cpu::GatedGroupNormParams make_params(int64_t token, int64_t head) const {
    return {head_dim_v,
            norm,
            eps,
            x.at(token, head),
            gate.at(token, head),
            weight.of_head(head),
            bias.of_head(head),
            nullptr};
  }
  int64_t num_tasks() const { return (tokens + kTokensPerTask - 1) / kTokensPerTask; }
  /// Calls f(task, token, head, workspace) for each token of each head.
  template <class Function>
  void each_token(size_t workspace_bytes, const Function& f) const {
    cpu::run_tasks(num_tasks(), workspace_bytes, [&](int64_t task, void* workspace) {
      const int64_t end = std::min(tokens, (task + 1) * kTokensPerTask);
      for (int64_t t = task * kTokensPerTask; t < end; ++t) {
        for (int64_t h = 0; h < heads; ++h) f(task, t, h, workspace);
      }
    });
  }

  const retnet::kernels::cpu::KernelTable& kernels;
  DenseTokens x, gate;
  cpu::Affine weight, bias;
  int64_t heads, head_dim_v, tokens;
  Norm norm;
  float eps;
};

bool supports_gated_group_norm(const at::Tensor& x) {
  return x.scalar_type() != at::kDouble && x.numel() > 0;
}

at::Tensor gated_group_norm_cpu(const at::Tensor& x, const std::optional<at::Tensor>& gate,
                                const std::optional<at::Tensor>& weight,
                                const std::optional<at::Tensor>& bias, double eps,
                                std::string_view norm) {
  if (!supports_gated_group_norm(x))
    return composite::gated_group_norm(x, gate, weight, bias, eps, norm);
  check_gated_group_norm("gated_group_norm", x, gate, weight, bias, eps, norm);
  const Call call(x, gate, weight, bias, eps, norm);
  const DenseTokens out(cpu::empty_output(x.sizes(), x.options()));
  call.each_token(0, [&](int64_t, int64_t token, int64_t head, void*) {
    auto p = call.make_params(token, head);
    p.out = out.mutable_at(token, head);
    call.kernels.gated_group_norm(p);
  });
  return out.tensor;
}

/// The partial sums of the gradient of weight or bias, one for each task.
struct PartialSums {
  PartialSums(bool needed, const std::optional<at::Tensor>& parameter, int64_t tasks) {
    if (!needed || !parameter) return;
    like = *parameter;
    floats.resize(tasks * like.numel());
  }
  float* of_head(int64_t task, int64_t head) {
    if (floats.empty()) return nullptr;
    return floats.data() + task * like.numel() + (like.dim() == 2 ? head * like.size(1) : 0);
  }
  /// Returns the sum over the tasks, which is taken in order and in float64.
  at::Tensor total() const {
    if (floats.empty()) return {};
    std::vector<double> sums(like.numel());
    for (size_t i = 0; i < floats.size(); ++i) sums[i % sums.size()] += floats[i];
    auto result = at::empty(like.sizes(), like.options().dtype(at::kFloat));
    std::transform(sums.begin(), sums.end(), result.mutable_data_ptr<float>(),
                   [](double x) { return static_cast<float>(x); });
    return result.to(like.scalar_type());
  }
  at::Tensor like;
  std::vector<float> floats;
};

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> gated_group_norm_backward_cpu(
    const at::Tensor& grad_out, const at::Tensor& x, const std::optional<at::Tensor>& gate,
    const std::optional<at::Tensor>& weight, const std::optional<at::Tensor>& bias, double eps,
    std::string_view norm, std::array<bool, 4> output_mask) {
  if (!supports_gated_group_norm(x)) {
    return composite::gated_group_norm_backward(grad_out, x, gate, weight, bias, eps, norm,
                                                output_mask);
  }
  check_gated_group_norm("gated_group_norm_backward", x, gate, weight, bias, eps, norm);
  check_gated_group_norm_grad(grad_out, x);
  const Call call(x, gate, weight, bias, eps, norm);
  const auto [needs_x, needs_gate, needs_weight, needs_bias] = output_mask;
  const auto empty_grad = [&](bool needed) {
    return DenseTokens(needed ? std::optional(cpu::empty_output(x.sizes(), x.options()))
                              : std::nullopt);
  };
  const DenseTokens dense_grad_out(grad_out), grad_x = empty_grad(needs_x),
                                              grad_gate = empty_grad(needs_gate && gate);
  PartialSums grad_weight(needs_weight, weight, call.num_tasks()),
      grad_bias(needs_bias, bias, call.num_tasks());
  call.each_token(call.head_dim_v * sizeof(float),
                  [&](int64_t task, int64_t token, int64_t head, void* workspace) {
                    call.kernels.gated_group_norm_backward(
                        {call.make_params(token, head), dense_grad_out.at(token, head),
                         grad_x.mutable_at(token, head), grad_gate.mutable_at(token, head),
                         grad_weight.of_head(task, head), grad_bias.of_head(task, head),
                         static_cast<float*>(workspace)});
                  });
  return {grad_x.tensor, grad_gate.tensor, grad_weight.total(), grad_bias.total()};
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CPU, m) {
  m.impl("gated_group_norm", gated_group_norm_cpu);
  m.impl("gated_group_norm_backward", gated_group_norm_backward_cpu);
}

}  // namespace retnet::ops
