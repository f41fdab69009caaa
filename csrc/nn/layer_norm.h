// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <ostream>

#include "../version.h"
#include "options.h"

namespace retnet::nn {

/// The normalisation of the last dimension, of the kind and eps that the options name
/// (Sun et al. 2023, Eq. 9):
///
///     "layer": y = (x - mean(x)) / sqrt(var(x) + eps) weight + bias
///     "rms":   y = x / sqrt(mean(x^2) + eps) weight
///
/// Keys: `weight` [channels], and `bias` [channels] for "layer".
class RETNET_API LayerNormImpl : public torch::nn::Cloneable<LayerNormImpl> {
 public:
  /// Over d channels, as in a block. `tensor_options` says where and in which dtype the parameters
  /// are made.
  explicit LayerNormImpl(const RetNetOptions& options,
                         const torch::TensorOptions& tensor_options = {});

  /// Over `channels`, as inside a feed-forward network.
  LayerNormImpl(const RetNetOptions& options, int64_t channels,
                const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// weight = 1, bias = 0.
  void reset_parameters();

  void pretty_print(std::ostream& stream) const override;

  /// x [..., channels]. Returns the same shape.
  torch::Tensor forward(const torch::Tensor& x);

  RetNetOptions options;  ///< what it was made from
  torch::Tensor weight;   ///< [channels]
  torch::Tensor bias;     ///< [channels]; undefined for "rms"

 private:
  int64_t channels_;
  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(LayerNorm);

}  // namespace retnet::nn
