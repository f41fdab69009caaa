// SPDX-License-Identifier: Apache-2.0
//
// The fields of RetNetOptions under their names. config.json and `retnet.RetNetConfig` in Python
// use the same names. Readers and writers share this list.
#pragma once

#include "options.h"

namespace retnet::nn {

/// Calls `visit(name, field)` for each field of `options`, which may be const.
template <class Options, class Visit>
void for_each_field(Options& options, const Visit& visit) {
  visit("vocab_size", options.vocab_size());
  visit("embed_dim", options.embed_dim());
  visit("num_layers", options.num_layers());
  visit("num_heads", options.num_heads());
  visit("key_dim", options.key_dim());
  visit("value_dim", options.value_dim());
  visit("ffn_dim", options.ffn_dim());
  visit("decay", options.decay());
  visit("learnable_decay", options.learnable_decay());
  visit("rotary_style", options.rotary_style());
  visit("frequencies", options.frequencies());
  visit("decay_norm", options.decay_norm());
  visit("group_norm", options.group_norm());
  visit("group_norm_eps", options.group_norm_eps());
  visit("group_norm_affine", options.group_norm_affine());
  visit("norm", options.norm());
  visit("norm_eps", options.norm_eps());
  visit("pre_norm", options.pre_norm());
  visit("ffn_gated", options.ffn_gated());
  visit("ffn_inner_norm", options.ffn_inner_norm());
  visit("activation", options.activation());
  visit("bias", options.bias());
  visit("residual_scale", options.residual_scale());
  visit("embed_scale", options.embed_scale());
  visit("embed_norm", options.embed_norm());
  visit("tie_embeddings", options.tie_embeddings());
}

}  // namespace retnet::nn
