// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <memory>
#include <optional>
#include <string_view>
#include <tuple>

#include "../version.h"
#include "decoder_layer.h"
#include "embedding.h"
#include "layer_norm.h"
#include "options.h"
#include "state.h"

namespace retnet::nn {

/// The RetNet body (Sun et al. 2023, section 2). It maps token ids to hidden states through an
/// embedding, the decoder layers and a last norm.
///
/// State-dict keys: `embed_tokens.weight` [vocab, d], `embed_norm.*` if `options.embed_norm()`,
/// `layers.N.*`, and `norm.*` if `options.pre_norm()`.
class RETNET_API RetNetImpl : public torch::nn::Cloneable<RetNetImpl> {
 public:
  /// `tensor_options` gives the device and the dtype of the parameters.
  explicit RetNetImpl(const RetNetOptions& options,
                      const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// Reinitialises every part. The embedding is drawn from N(0, 1/d), as in torchscale.
  ///
  /// Two switches scale v, out and the first and last matrix of the feed-forward network:
  ///
  /// - If residual_scale is a != 1 (DeepNet), they are divided by sqrt(2) a. For the value of
  ///   DeepNet, a = (2L)^(1/4), this is (8L)^(1/4).
  /// - If ffn_inner_norm is true (Magneto), they are multiplied by sqrt(ln 2L).
  void reset_parameters();

  /// Runs the body on a block of tokens.
  ///
  ///   input_ids   [B, T] int64 or int32
  ///   state       the state after the tokens that were read before; absent at the start. If the
  ///               sequences are packed, it holds N sequences
  ///   cu_seqlens  [N + 1] int32, bounds of N packed sequences (B = 1)
  ///   form        "chunkwise", "parallel" or "recurrent". The values are the same up to rounding
  ///   inplace     a decode step (T = 1 with a state, grad mode off) overwrites `state` instead of a
  ///               copy. Other calls never change `state`
  ///
  /// Returns the hidden states [B, T, d] and the state after the last token. Raises c10::ValueError
  /// if input_ids or state has a wrong shape.
  std::tuple<torch::Tensor, RetNetState> forward(
      const torch::Tensor& input_ids, const std::optional<RetNetState>& state = std::nullopt,
      const std::optional<torch::Tensor>& cu_seqlens = std::nullopt,
      std::string_view form = "chunkwise", bool inplace = false);

  RetNetOptions options;                  ///< the options of the module
  Embedding embed_tokens{nullptr};        ///< [vocab, d]
  LayerNorm embed_norm{nullptr};          ///< empty unless options.embed_norm()
  torch::nn::ModuleList layers{nullptr};  ///< the layers, each a DecoderLayer
  LayerNorm norm{nullptr};                ///< empty unless pre_norm
  /// Keep only the inputs of each layer for the backward pass, which then runs the forward of the
  /// layer again (activation checkpointing). The backward pass raises if an input or a parameter of
  /// a layer has changed in place before it.
  bool checkpoint_layers = false;

 private:
  std::shared_ptr<DecoderLayerImpl> layer(int64_t index);
  void reset_embedding();
  void scale_layers();

  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(RetNet);

}  // namespace retnet::nn
