// SPDX-License-Identifier: Apache-2.0
#include "nn/linear_cross_entropy.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "ops/cross_entropy.h"

namespace retnet::nn {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Chunk = std::pair<torch::Tensor, torch::Tensor>;  // hidden states and targets

// The number of logits in a chunk, and the least number of its tokens. python/retnet/nn/loss.py has
// the same numbers.
constexpr int64_t kLogits = 1 << 25;
constexpr int64_t kTokens = 1024;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::vector<Chunk> chunks_of(const torch::Tensor& hidden, const torch::Tensor& targets,
                             int64_t vocab_size) {
  const int64_t batch = targets.size(0), length = targets.size(1);
  const auto longest =
      std::max<int64_t>(std::max(kTokens, kLogits / vocab_size) / std::max<int64_t>(batch, 1), 1);
  const auto count = std::max<int64_t>(ceil_div(length, longest), 1);
  const auto chunk_length = std::max<int64_t>(ceil_div(length, count), 1);
  const auto parts = hidden.split(chunk_length, 1), part_targets = targets.split(chunk_length, 1);
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < parts.size(); ++i) chunks.emplace_back(parts[i], part_targets[i]);
  return chunks;
}

torch::Tensor wide(const torch::Tensor& x) {
  return x.scalar_type() == torch::kFloat64 ? x : x.to(torch::kFloat32);
}

/// The summed loss of a chunk.
torch::Tensor nats(const LogitsHead& head, const Chunk& chunk, const variable_list& parameters) {
  return torch::cross_entropy_loss(wide(head(chunk.first, parameters).flatten(0, 1)),
                                   chunk.second.flatten(),
                                   /*weight=*/{}, at::Reduction::Sum, kIgnoreIndex);
}

torch::Tensor total(const std::vector<torch::Tensor>& losses) {
  auto sum = losses[0];
  for (size_t i = 1; i < losses.size(); ++i) sum = sum + losses[i];
  return sum;
}

/// Computes the summed loss and, in the same pass, the gradients of hidden and the parameters.
struct WithGradients : torch::autograd::Function<WithGradients> {
  static torch::Tensor forward(AutogradContext* ctx, const torch::Tensor& hidden,
                               const torch::Tensor& targets, const LogitsHead& head,
                               int64_t vocab_size, bool overwrite, at::TensorList parameters) {
    // autograd::grad runs the hooks of the tensors that it gets. Aliases avoid this, because the
    // gradients here are partial sums.
    variable_list aliases, learning;
    for (const auto& p : parameters) {
      aliases.push_back(p.detach().requires_grad_(p.requires_grad()));
      if (p.requires_grad()) learning.push_back(aliases.back());
    }
    variable_list losses, of_hidden, sums;  // sums: the gradients of `learning`
    for (const auto& [part, target] : chunks_of(hidden.detach(), targets, vocab_size)) {
      variable_list asked;
      if (hidden.requires_grad()) asked.push_back(part.requires_grad_());
      asked.insert(asked.end(), learning.begin(), learning.end());
      variable_list found;
      {
        torch::Tensor logits;
        {
          const torch::AutoGradMode grad_mode(true);
          logits = head(part, aliases).flatten(0, 1);
        }
        // detach() is not used: it gives a view, and autograd makes a new node with copies if the
        // version of a view changes.
        const auto grad = overwrite ? logits.variable_data()
                                    : logits.detach().clone(at::MemoryFormat::Contiguous);
        losses.push_back(ops::cross_entropy_with_gradient_(grad, target.flatten(), kIgnoreIndex));
        if (!asked.empty()) found = torch::autograd::grad({logits}, asked, {grad});
      }
      auto next = found.begin();
      if (hidden.requires_grad()) of_hidden.push_back(*next++);
      const bool first = sums.empty();
      for (size_t i = 0; i < learning.size(); ++i, ++next) {
        if (first) {
          sums.push_back(wide(*next));
        } else {
          sums[i].add_(*next);
        }
      }
    }
    at::autocast::clear_cache();  // it would keep casts of the aliases
    variable_list saved = {of_hidden.empty() ? torch::Tensor() : torch::cat(of_hidden, 1)};
    std::vector<int64_t> dtypes = {static_cast<int64_t>(hidden.scalar_type())};
    auto next_sum = sums.begin();
    for (const auto& p : parameters) {
      saved.push_back(p.requires_grad() ? *next_sum++ : torch::Tensor());
      dtypes.push_back(static_cast<int64_t>(p.scalar_type()));
    }
    ctx->save_for_backward(saved);
    ctx->saved_data["dtypes"] = dtypes;
    return total(losses);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grad_outputs) {
    TORCH_CHECK(!torch::GradMode::is_enabled(),
                "retnet::nn::linear_cross_entropy: double backward is not supported");
    const auto saved = ctx->get_saved_variables();
    const auto dtypes = ctx->saved_data["dtypes"].toIntVector();
    variable_list grads;
    for (size_t i = 0; i < saved.size(); ++i) {
      // The product is wide: in the dtype of a 16-bit gradient, it would round the factor.
      grads.push_back(
          saved[i].defined()
              ? (wide(saved[i]) * grad_outputs[0]).to(static_cast<at::ScalarType>(dtypes[i]))
              : torch::Tensor());
    }
    grads.insert(grads.begin() + 1, 4, torch::Tensor());  // targets to overwrite
    return grads;
  }
};

}  // namespace

torch::Tensor linear_cross_entropy(const torch::Tensor& hidden, const LogitsHead& head,
                                   const torch::Tensor& targets, int64_t vocab_size,
                                   const std::vector<torch::Tensor>& parameters,
                                   std::string_view reduction, bool overwrite) {
  TORCH_CHECK_VALUE(hidden.dim() == 3,
                    "linear_cross_entropy: hidden must have shape [B, T, d], got ", hidden.sizes());
  TORCH_CHECK_VALUE(targets.sizes() == hidden.sizes().slice(0, 2),
                    "linear_cross_entropy: targets must have the shape of hidden's tokens, ",
                    hidden.sizes().slice(0, 2), ", got ", targets.sizes());
  TORCH_CHECK_VALUE(targets.scalar_type() == torch::kInt64,
                    "linear_cross_entropy: targets must be int64, got ", targets.scalar_type());
  TORCH_CHECK_VALUE(reduction == "mean" || reduction == "sum",
                    "linear_cross_entropy: reduction must be \"mean\" or \"sum\", got \"",
                    reduction, "\"");
  const auto chunks = chunks_of(hidden, targets, vocab_size);
  torch::Tensor loss;
  if (chunks.size() == 1 || !torch::GradMode::is_enabled()) {
    std::vector<torch::Tensor> losses;
    for (const auto& chunk : chunks) losses.push_back(nats(head, chunk, parameters));
    loss = total(losses);
  } else {
    loss = WithGradients::apply(hidden, targets, head, vocab_size, overwrite,
                                at::TensorList(parameters));
  }
  if (reduction == "sum") return loss;
  const auto count = targets.ne(kIgnoreIndex).sum();
  // Without the clamp, 0 / 0 would have the gradient NaN. That of cross_entropy is 0.
  return torch::where(count > 0, loss / count.clamp_min(1), NAN);
}

}  // namespace retnet::nn
