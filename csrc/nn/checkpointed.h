// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <tuple>

#include "nn/decoder_layer.h"

namespace retnet::nn {

/// Computes `layer->forward(...)` but keeps only the inputs for the backward pass, which runs it
/// again (activation checkpointing). Values and gradients are the same.
std::tuple<torch::Tensor, torch::Tensor> checkpointed(
    const std::shared_ptr<DecoderLayerImpl>& layer, const torch::Tensor& x,
    const std::optional<torch::Tensor>& state, const torch::Tensor& positions,
    const std::optional<torch::Tensor>& cu_seqlens, std::string_view form);

}  // namespace retnet::nn
