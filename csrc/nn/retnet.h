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

/// The RetNet body (Sun et al. 2023, section 2): token ids to hidden states, through an embedding,
/// the decoder layers and a last norm.
///
/// Keys: `embed_tokens.weight` [vocab, d], `embed_norm.*` if `options.embed_norm()`, `layers.N.*`, and
/// `norm.*` if `options.pre_norm()`.
class RETNET_API RetNetImpl : public torch::nn::Cloneable<RetNetImpl> {
 public:
  /// `tensor_options` says where and in which dtype the parameters are made.
  explicit RetNetImpl(const RetNetOptions& options,
                      const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// Initialises every part anew; the embedding from N(0, 1/d), as torchscale.
  ///
  /// With a residual_scale a != 1 (DeepNet), v, out and the first and last matrix of the feed-forward
  /// network are divided by sqrt(2) a, which is (8L)^(1/4) for DeepNet's a = (2L)^(1/4); with
  /// ffn_inner_norm (Magneto) they are multiplied by sqrt(ln 2L).
  void reset_parameters();

  /// Runs the body over a block of tokens.
  ///
  ///   input_ids   [B, T] int64 or int32
  ///   state       what the model has read so far; absent = a start. Of N sequences if packed
  ///   cu_seqlens  [N + 1] int32, bounds of N packed sequences (B = 1)
  ///   form        "chunkwise", "parallel" or "recurrent"; the same values up to rounding
  ///   inplace     a step of decoding (T = 1 with a state, grad mode off) overwrites `state` instead
  ///               of a copy. Other calls leave `state` alone in any case
  ///
  /// Returns the hidden states [B, T, d] and the state after the last token. Raises c10::ValueError
  /// when input_ids or state has a wrong shape.
  std::tuple<torch::Tensor, RetNetState> forward(
      const torch::Tensor& input_ids, const std::optional<RetNetState>& state = std::nullopt,
      const std::optional<torch::Tensor>& cu_seqlens = std::nullopt,
      std::string_view form = "chunkwise", bool inplace = false);

  RetNetOptions options;                  ///< what it was made from
  Embedding embed_tokens{nullptr};        ///< [vocab, d]
  LayerNorm embed_norm{nullptr};          ///< empty unless options.embed_norm()
  torch::nn::ModuleList layers{nullptr};  ///< of DecoderLayer
  LayerNorm norm{nullptr};                ///< empty unless pre_norm
  /// Keep only the inputs of each layer for the backward pass, which then runs the layer's forward
  /// again (activation checkpointing). A tensor that a layer takes, a parameter included, may not
  /// change in place before that: the backward pass raises.
  bool checkpoint_layers = false;

 private:
  std::shared_ptr<DecoderLayerImpl> layer(int64_t index);
  void reset_embedding();
  void scale_layers();

  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(RetNet);

}  // namespace retnet::nn
