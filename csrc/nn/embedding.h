// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <ostream>

#include "../version.h"

namespace retnet::nn {

/// The rows of a matrix by number. torch's `nn::Embedding`, made on the device and in the dtype
/// given, for the reason that `Linear` names.
///
/// Keys: `weight` [num_embeddings, embedding_dim].
class RETNET_API EmbeddingImpl : public torch::nn::Cloneable<EmbeddingImpl> {
 public:
  /// `tensor_options` says where and in which dtype the parameters are made.
  EmbeddingImpl(int64_t num_embeddings, int64_t embedding_dim,
                const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// torch's default: N(0, 1).
  void reset_parameters();

  void pretty_print(std::ostream& stream) const override;

  /// ids [...] int64 or int32. Returns [..., embedding_dim].
  torch::Tensor forward(const torch::Tensor& ids);

  torch::Tensor weight;  ///< [num_embeddings, embedding_dim]

 private:
  int64_t num_embeddings_, embedding_dim_;
  torch::TensorOptions tensor_options_;
};
TORCH_MODULE(Embedding);

}  // namespace retnet::nn
