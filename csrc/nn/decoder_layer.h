// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <optional>
#include <ostream>
#include <string_view>
#include <tuple>

#include "../version.h"
#include "feed_forward.h"
#include "layer_norm.h"
#include "multi_scale_retention.h"
#include "options.h"

namespace retnet::nn {

/// One layer of a RetNet: retention and feed-forward with residuals (Sun et al. 2023, Eq. 9). With
/// a = `options.residual_scale()`, it computes
///
///     y = a x + retention(norm(x));   z = a y + ffn(norm(y))
///
/// If `options.pre_norm()` is false, the norms follow the sums: y = norm(a x + retention(x)).
///
/// State-dict keys: `retention_norm.*`, `retention.*`, `ffn_norm.*` and `ffn.*`.
class RETNET_API DecoderLayerImpl : public torch::nn::Cloneable<DecoderLayerImpl> {
 public:
  /// `tensor_options` gives the device and the dtype of the parameters.
  explicit DecoderLayerImpl(const RetNetOptions& options,
                            const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// Reinitialises every part.
  void reset_parameters();

  void pretty_print(std::ostream& stream) const override;

  /// Runs the layer on x [B, T, d]. The other arguments, the results and the errors are those of
  /// `MultiScaleRetentionImpl::forward`.
  std::tuple<torch::Tensor, torch::Tensor> forward(
      const torch::Tensor& x, const std::optional<torch::Tensor>& state = std::nullopt,
      const std::optional<torch::Tensor>& positions = std::nullopt,
      const std::optional<torch::Tensor>& cu_seqlens = std::nullopt,
      std::string_view form = "chunkwise", bool inplace = false);

  RetNetOptions options;                   ///< the options of the module
  LayerNorm retention_norm{nullptr};       ///< before retention, or after its residual sum
  MultiScaleRetention retention{nullptr};  ///< the first block
  LayerNorm ffn_norm{nullptr};             ///< before the network, or after its residual sum
  FeedForward ffn{nullptr};                ///< the second block

 private:
  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(DecoderLayer);

}  // namespace retnet::nn
