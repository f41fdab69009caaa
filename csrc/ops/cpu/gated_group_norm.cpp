// SPDX-License-Identifier: Apache-2.0
#include "ops/gated_group_norm.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "ops/check.h"
#include "ops/composite/gated_group_norm.h"
#include "ops/cpu/empty_output.h"
#include "ops/cpu/floats.h"
#include "ops/cpu/instruction_set.h"
#include "ops/cpu/parallel.h"

namespace retnet::ops {
namespace {

constexpr int64_t kTokens = 32;  // of a task, and of a partial sum of the gradients of weight, bias

/// [..., H, Dv] of the kernel's dtype, readable row by row.
struct Rows {
  explicit Rows(const at::Tensor& x) : tensor(x.contiguous()) {}
  explicit Rows(const std::optional<at::Tensor>& x)
      : tensor(x && x->defined() ? x->contiguous() : at::Tensor()) {}
  /// Row `row` of token-heads, or null.
  const void* row(int64_t row) const {
    if (!tensor.defined()) return nullptr;
    return static_cast<const char*>(tensor.const_data_ptr()) +
           row * tensor.size(-1) * static_cast<int64_t>(tensor.element_size());
  }
  void* mutable_row(int64_t r) const { return const_cast<void*>(row(r)); }
  at::Tensor tensor;
};

/// weight or bias as floats: one row, or one for each head.
struct Affine {
  explicit Affine(const std::optional<at::Tensor>& x) {
    if (!x) return;
    floats.emplace(*x);
    per_head = x->dim() == 2;
  }
  const float* row(int64_t head, int64_t channels) const {
    return floats ? floats->row(per_head ? head : 0, channels) : nullptr;
  }
  std::optional<cpu::Floats> floats;
  bool per_head = false;
};

/// A call that the kernel takes.
struct Call {
  Call(const at::Tensor& x_, const std::optional<at::Tensor>& gate_,
       const std::optional<at::Tensor>& weight_, const std::optional<at::Tensor>& bias_,
       double eps_, std::string_view norm)
      : kernels(cpu::kernels_of(cpu::instruction_set(), x_.scalar_type())),
        x(x_),
        gate(gate_),
        weight(weight_),
        bias(bias_),
        heads(x_.size(-2)),
        channels(x_.size(-1)),
        tokens(x_.numel() / (heads * channels)),
        eps(static_cast<float>(eps_)),
        centred(norm == "layer") {}

  retnet::kernels::cpu::GatedNormParams row(int64_t token, int64_t head) const {
    const int64_t r = token * heads + head;
    return {channels,
            eps,
            centred,
            x.row(r),
            gate.row(r),
            weight.row(head, channels),
            bias.row(head, channels),
            nullptr};
  }
  /// f(task, token, head) for all rows, by tasks of kTokens tokens side by side.
  template <class Function>
  void each_row(size_t scratch_bytes, const Function& f) const {
    cpu::run_tasks((tokens + kTokens - 1) / kTokens, scratch_bytes, [&](int64_t task, void* p) {
      for (int64_t t = task * kTokens; t < std::min(tokens, (task + 1) * kTokens); ++t) {
        for (int64_t h = 0; h < heads; ++h) f(task, t, h, p);
      }
    });
  }

  const retnet::kernels::cpu::Kernels& kernels;
  Rows x, gate;
  Affine weight, bias;
  int64_t heads, channels, tokens;
  float eps;
  bool centred;
};

bool takes(const at::Tensor& x) { return x.scalar_type() != at::kDouble && x.numel() > 0; }

at::Tensor gated_group_norm_cpu(const at::Tensor& x, const std::optional<at::Tensor>& gate,
                                const std::optional<at::Tensor>& weight,
                                const std::optional<at::Tensor>& bias, double eps,
                                std::string_view norm) {
  if (!takes(x)) return composite::gated_group_norm(x, gate, weight, bias, eps, norm);
  check_gated_group_norm("gated_group_norm", x, gate, weight, bias, eps, norm);
  const Call call(x, gate, weight, bias, eps, norm);
  const Rows out(cpu::empty_output(x.sizes(), x.options()));
  call.each_row(0, [&](int64_t, int64_t token, int64_t head, void*) {
    auto p = call.row(token, head);
    p.out = out.mutable_row(token * call.heads + head);
    call.kernels.gated_norm(p);
  });
  return out.tensor;
}

/// The partial sums of a gradient of weight or bias, one for each task.
struct PartialSums {
  PartialSums(bool asked, const std::optional<at::Tensor>& of, int64_t tasks) {
    if (!asked || !of) return;
    like = *of;
    floats.resize(tasks * like.numel());
  }
  float* row(int64_t task, int64_t head) {
    if (floats.empty()) return nullptr;
    return floats.data() + task * like.numel() + (like.dim() == 2 ? head * like.size(1) : 0);
  }
  /// Added up in order, in float64.
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
  if (!takes(x)) {
    return composite::gated_group_norm_backward(grad_out, x, gate, weight, bias, eps, norm,
                                                output_mask);
  }
  check_gated_group_norm("gated_group_norm_backward", x, gate, weight, bias, eps, norm);
  check_gated_group_norm_grad(grad_out, x);
  const Call call(x, gate, weight, bias, eps, norm);
  const auto [ask_x, ask_gate, ask_weight, ask_bias] = output_mask;
  const auto like_x = [&](bool asked) {
    return Rows(asked ? std::optional(cpu::empty_output(x.sizes(), x.options())) : std::nullopt);
  };
  const Rows incoming(grad_out), grad_x = like_x(ask_x), grad_gate = like_x(ask_gate && gate);
  const int64_t tasks = (call.tokens + kTokens - 1) / kTokens;
  PartialSums grad_weight(ask_weight, weight, tasks), grad_bias(ask_bias, bias, tasks);
  call.each_row(
      call.channels * sizeof(float), [&](int64_t task, int64_t token, int64_t head, void* scratch) {
        const int64_t r = token * call.heads + head;
        call.kernels.gated_norm_grad({call.row(token, head), incoming.row(r), grad_x.mutable_row(r),
                                      grad_gate.mutable_row(r), grad_weight.row(task, head),
                                      grad_bias.row(task, head), static_cast<float*>(scratch)});
      });
  return {grad_x.tensor, grad_gate.tensor, grad_weight.total(), grad_bias.total()};
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CPU, m) {
  m.impl("gated_group_norm", gated_group_norm_cpu);
  m.impl("gated_group_norm_backward", gated_group_norm_backward_cpu);
}

}  // namespace retnet::ops
