// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <ostream>

#include "../version.h"

namespace retnet::nn {

/// Looks up rows of a matrix, like torch's `nn::Embedding`. Its weight is created on the given
/// device and in the given dtype. `Linear` explains why.
///
/// State-dict keys: `weight` [num_embeddings, embedding_dim].
class RETNET_API EmbeddingImpl : public torch::nn::Cloneable<EmbeddingImpl> {
 public:
  /// `tensor_options` gives the device and the dtype of the parameters.
  EmbeddingImpl(int64_t num_embeddings, int64_t embedding_dim,
                const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// Reinitialises the weight from N(0, 1), which is torch's default.
  void reset_parameters();

  void pretty_print(std::ostream& stream) const override;

  /// Looks up ids [...] int64 or int32. Returns [..., embedding_dim].
  torch::Tensor forward(const torch::Tensor& ids);

  torch::Tensor weight;  ///< [num_embeddings, embedding_dim]

 private:
  int64_t num_embeddings_, embedding_dim_;
  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(Embedding);

}  // namespace retnet::nn
