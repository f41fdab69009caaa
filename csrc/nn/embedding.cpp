// SPDX-License-Identifier: Apache-2.0
#include "nn/embedding.h"

#include <torch/nn/init.h>

#include "nn/skip_init.h"

namespace retnet::nn {

EmbeddingImpl::EmbeddingImpl(int64_t num_embeddings, int64_t embedding_dim,
                             const torch::TensorOptions& tensor_options)
    : num_embeddings_(num_embeddings),
      embedding_dim_(embedding_dim),
      tensor_options_(tensor_options) {
  reset();
}

void EmbeddingImpl::reset() {
  weight = register_parameter("weight",
                              torch::empty({num_embeddings_, embedding_dim_}, tensor_options_));
  reset_parameters();
}

void EmbeddingImpl::reset_parameters() {
  if (SkipInit::active()) return;
  torch::nn::init::normal_(weight);
}

void EmbeddingImpl::pretty_print(std::ostream& stream) const {
  stream << "retnet::nn::Embedding(num_embeddings=" << num_embeddings_
         << ", embedding_dim=" << embedding_dim_ << ")";
}

torch::Tensor EmbeddingImpl::forward(const torch::Tensor& ids) {
  return torch::embedding(weight, ids);
}

}  // namespace retnet::nn
