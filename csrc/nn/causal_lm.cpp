// SPDX-License-Identifier: Apache-2.0
#include "nn/causal_lm.h"

#include <torch/nn/init.h>

#include <cmath>

#include "nn/linear_cross_entropy.h"
#include "nn/skip_init.h"

namespace retnet::nn {

namespace {

/// The labels [B, T] shifted one to the left, with -100 at the end of each sequence.
torch::Tensor next_tokens(torch::Tensor labels, const std::optional<torch::Tensor>& cu_seqlens) {
  if (cu_seqlens) {
    const auto starts =
        torch::zeros({labels.size(1) + 1}, torch::dtype(torch::kBool).device(labels.device()))
            .index_fill(0, cu_seqlens->to(torch::kInt64), true);
    labels = labels.masked_fill(starts.slice(0, 0, -1), kIgnoreIndex);
  }
  return torch::constant_pad_nd(labels, {0, 1}, kIgnoreIndex).slice(1, 1);
}

void check_targets(const char* name, const std::optional<torch::Tensor>& given,
                   const torch::Tensor& input_ids) {
  if (!given) return;
  TORCH_CHECK_VALUE(given->sizes() == input_ids.sizes(), "RetNetForCausalLM: ", name,
                    " must have the shape of input_ids, ", input_ids.sizes(), ", got ",
                    given->sizes());
  TORCH_CHECK_VALUE(given->scalar_type() == torch::kInt64, "RetNetForCausalLM: ", name,
                    " must be int64, got ", given->scalar_type());
}

}  // namespace

RetNetForCausalLMImpl::RetNetForCausalLMImpl(const RetNetOptions& options,
                                             const torch::TensorOptions& tensor_options)
    : options(options.validated()), tensor_options_(tensor_options) {
  reset();
}

void RetNetForCausalLMImpl::reset() {
  body = RetNet(options, tensor_options_);
  for (const auto& child : body->named_children()) register_module(child.key(), child.value());
  if (!options.tie_embeddings()) {
    lm_head = register_module("lm_head", Linear(options.embed_dim(), options.vocab_size(),
                                                /*bias=*/false, tensor_options_));
    reset_head();
  }
}

void RetNetForCausalLMImpl::reset_head() {
  if (SkipInit::active()) return;
  torch::nn::init::normal_(lm_head->weight, 0, std::pow(options.embed_dim(), -0.5));
}

void RetNetForCausalLMImpl::reset_parameters() {
  body->reset_parameters();
  if (lm_head) reset_head();
}

CausalLMOutput RetNetForCausalLMImpl::forward(const torch::Tensor& input_ids,
                                              const std::optional<RetNetState>& state,
                                              const std::optional<torch::Tensor>& cu_seqlens,
                                              const std::optional<torch::Tensor>& labels,
                                              std::string_view form, bool inplace, bool last_only,
                                              const std::optional<torch::Tensor>& targets,
                                              std::string_view reduction) {
  TORCH_CHECK_VALUE(labels.has_value() + targets.has_value() + last_only <= 1,
                    "RetNetForCausalLM: only one of labels, targets and last_only may be given");
  check_targets("labels", labels, input_ids);
  check_targets("targets", targets, input_ids);
  auto [hidden, after] = body->forward(input_ids, state, cu_seqlens, form, inplace);
  const auto parameters =
      lm_head ? lm_head->parameters() : std::vector<torch::Tensor>{body->embed_tokens->weight};
  const auto head = [](const torch::Tensor& x, const std::vector<torch::Tensor>& p) {
    return nn::linear(x, p[0], p.size() > 1 ? p[1] : torch::Tensor());
  };
  if (labels || targets) {
    const auto loss =
        linear_cross_entropy(hidden, head, targets ? *targets : next_tokens(*labels, cu_seqlens),
                             options.vocab_size(), parameters, reduction, /*overwrite=*/true);
    return {torch::Tensor(), loss, after};
  }
  if (!last_only) return {head(hidden, parameters), std::nullopt, after};

  TORCH_CHECK_VALUE(input_ids.size(1) > 0,
                    "RetNetForCausalLM: input_ids must have T >= 1 tokens with last_only, got ",
                    input_ids.sizes());
  if (!cu_seqlens) return {head(hidden.slice(1, -1), parameters), std::nullopt, after};
  const auto last = cu_seqlens->slice(0, 1).to(torch::kInt64) - 1;
  const auto empty = cu_seqlens->diff() == 0;
  if (empty.is_cpu()) {
    const auto found = empty.nonzero();
    TORCH_CHECK_VALUE(
        found.size(0) == 0,
        "RetNetForCausalLM: cu_seqlens must have no empty sequence with last_only, got "
        "sequence ",
        found[0].item<int64_t>(), " of length 0");
    return {head(hidden.index_select(1, last), parameters), std::nullopt, after};
  }
  // On a device, a check would have to wait, so empty sequences get NaN instead.
  const auto logits = head(hidden.index_select(1, last.clamp_min(0)), parameters);
  return {logits.masked_fill(empty.unsqueeze(1), NAN), std::nullopt, after};
}

}  // namespace retnet::nn
