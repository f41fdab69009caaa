// SPDX-License-Identifier: Apache-2.0
#include "nn/retnet.h"

#include <torch/nn/init.h>

#include <cmath>
#include <vector>

#include "nn/checkpointed.h"
#include "nn/skip_init.h"

namespace retnet::nn {

namespace {

void check_state(const RetNetState& state, const RetNetOptions& options, int64_t batch) {
  const std::vector<int64_t> want = {options.num_layers(), batch, options.num_heads(),
                                     options.key_dim(), options.value_dim()};
  TORCH_CHECK_VALUE(state.retention.sizes() == want,
                    "RetNet: state.retention must have shape [L, B, H, K, V] = ",
                    c10::IntArrayRef(want), ", got ", state.retention.sizes());
  TORCH_CHECK_VALUE(state.positions.sizes() == c10::IntArrayRef({batch}),
                    "RetNet: state.positions must have shape [B] = [", batch, "], got ",
                    state.positions.sizes());
}

/// The position of each token in its own sequence, [T] or [B, T].
torch::Tensor token_positions(const torch::Tensor& input_ids,
                              const std::optional<RetNetState>& state,
                              const std::optional<torch::Tensor>& cu_seqlens) {
  const auto index =
      torch::arange(input_ids.size(1), torch::dtype(torch::kInt64).device(input_ids.device()));
  if (!cu_seqlens) return state ? state->positions.unsqueeze(1) + index : index;
  const auto bounds = cu_seqlens->to(torch::kInt64);
  auto start = -bounds.slice(0, 0, -1);
  if (state) start = start + state->positions;
  const auto ends = bounds.slice(0, 1);
  // A token comes after every end that is not above it. The clamp leaves bad bounds to the op.
  const auto sequence = torch::searchsorted(ends, index, /*out_int32=*/false, /*right=*/true)
                            .clamp_max(ends.size(0) - 1);
  return (index + start.index_select(0, sequence)).unsqueeze(0);
}

/// The position after the last token of each sequence, [B].
torch::Tensor advanced(const torch::Tensor& input_ids, const std::optional<RetNetState>& state,
                       const std::optional<torch::Tensor>& cu_seqlens) {
  const auto read = cu_seqlens
                        ? cu_seqlens->diff().to(torch::kInt64)
                        : torch::full({input_ids.size(0)}, input_ids.size(1),
                                      torch::dtype(torch::kInt64).device(input_ids.device()));
  return state ? state->positions + read : read;
}

}  // namespace

RetNetImpl::RetNetImpl(const RetNetOptions& options, const torch::TensorOptions& tensor_options)
    : options(options.validated()), tensor_options_(tensor_options) {
  reset();
}

void RetNetImpl::reset() {
  embed_tokens = register_module(
      "embed_tokens", Embedding(options.vocab_size(), options.embed_dim(), tensor_options_));
  if (options.embed_norm()) {
    embed_norm = register_module("embed_norm", LayerNorm(options, tensor_options_));
  }
  layers = register_module("layers", torch::nn::ModuleList());
  for (int64_t index = 0; index < options.num_layers(); ++index) {
    layers->push_back(DecoderLayer(options, tensor_options_));
  }
  if (options.pre_norm()) norm = register_module("norm", LayerNorm(options, tensor_options_));
  reset_embedding();
  scale_layers();
}

void RetNetImpl::reset_embedding() {
  if (SkipInit::active()) return;
  torch::nn::init::normal_(embed_tokens->weight, 0, std::pow(options.embed_dim(), -0.5));
}

void RetNetImpl::scale_layers() {
  if (SkipInit::active()) return;
  double factor = 1;
  if (options.residual_scale() != 1) factor /= std::sqrt(2.0) * options.residual_scale();
  if (options.ffn_inner_norm()) factor *= std::sqrt(std::log(2.0 * options.num_layers()));
  if (factor == 1) return;
  const torch::NoGradGuard no_grad;
  for (int64_t index = 0; index < options.num_layers(); ++index) {
    const auto& part = *layer(index);
    const auto& first = part.ffn->gate_proj ? part.ffn->gate_proj : part.ffn->up_proj;
    for (const auto& proj :
         {part.retention->v_proj, part.retention->out_proj, first, part.ffn->down_proj}) {
      proj->weight.mul_(factor);
    }
  }
}

void RetNetImpl::reset_parameters() {
  reset_embedding();
  if (embed_norm) embed_norm->reset_parameters();
  for (int64_t index = 0; index < options.num_layers(); ++index) layer(index)->reset_parameters();
  if (norm) norm->reset_parameters();
  scale_layers();
}

std::shared_ptr<DecoderLayerImpl> RetNetImpl::layer(int64_t index) {
  return layers->ptr<DecoderLayerImpl>(index);
}

std::tuple<torch::Tensor, RetNetState> RetNetImpl::forward(
    const torch::Tensor& input_ids, const std::optional<RetNetState>& state,
    const std::optional<torch::Tensor>& cu_seqlens, std::string_view form, bool inplace) {
  TORCH_CHECK_VALUE(input_ids.dim() == 2, "RetNet: input_ids must have shape [B, T], got ",
                    input_ids.sizes());
  if (state) check_state(*state, options, cu_seqlens ? cu_seqlens->size(0) - 1 : input_ids.size(0));
  const auto positions = token_positions(input_ids, state, cu_seqlens);
  auto hidden = embed_tokens(input_ids) * options.embed_scale();
  if (embed_norm) hidden = embed_norm(hidden);
  const auto finish = [&] { return norm ? norm(hidden) : hidden; };

  if (is_step(input_ids.size(1), state.has_value(), cu_seqlens)) {
    const auto after = inplace ? *state : state->fork();
    for (int64_t index = 0; index < options.num_layers(); ++index) {
      std::tie(hidden, std::ignore) =
          layer(index)->forward(hidden, after.retention[index], positions, std::nullopt, form,
                                /*inplace=*/true);
    }
    after.positions.add_(1);
    return {finish(), after};
  }

  const bool checkpoint = checkpoint_layers && torch::GradMode::is_enabled();
  std::vector<torch::Tensor> after(options.num_layers());
  for (int64_t index = 0; index < options.num_layers(); ++index) {
    const auto before = state ? std::optional(state->retention[index]) : std::nullopt;
    std::tie(hidden, after[index]) =
        checkpoint ? checkpointed(layer(index), hidden, before, positions, cu_seqlens, form)
                   : layer(index)->forward(hidden, before, positions, cu_seqlens, form);
  }
  return {finish(), {torch::stack(after), advanced(input_ids, state, cu_seqlens)}};
}

}  // namespace retnet::nn
