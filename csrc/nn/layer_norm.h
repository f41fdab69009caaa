// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <ostream>

#include "../version.h"
#include "options.h"

namespace retnet::nn {

/// Normalisation of the last dimension, with the kind and eps of the options (Sun et al. 2023, Eq.
/// 9):
///
///     "layer": y = (x - mean(x)) / sqrt(var(x) + eps) weight + bias
///     "rms":   y = x / sqrt(mean(x^2) + eps) weight
///
/// State-dict keys: `weight` [channels], and `bias` [channels] for "layer".
class RETNET_API LayerNormImpl : public torch::nn::Cloneable<LayerNormImpl> {
 public:
  /// Normalises over d channels, as in a block. `tensor_options` gives the device and the dtype of
  /// the parameters.
  explicit LayerNormImpl(const RetNetOptions& options,
                         const torch::TensorOptions& tensor_options = {});

  /// Normalises over `channels`, as inside a feed-forward network.
  LayerNormImpl(const RetNetOptions& options, int64_t channels,
                const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// Sets weight to 1 and bias to 0.
  void reset_parameters();

  void pretty_print(std::ostream& stream) const override;

  /// Normalises x [..., channels]. Returns the same shape.
  torch::Tensor forward(const torch::Tensor& x);

  RetNetOptions options;  ///< the options of the module
  torch::Tensor weight;   ///< [channels]
  torch::Tensor bias;     ///< [channels]; undefined for "rms"

 private:
  int64_t channels_;
  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(LayerNorm);

}  // namespace retnet::nn
