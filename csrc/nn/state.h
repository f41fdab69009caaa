// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include "../version.h"

namespace retnet::nn {

/// What a RetNet remembers of the tokens it has read (Sun et al. 2023, Eq. 6: S_n of every layer):
/// a value of fixed size, whatever the length of the text. `RetNetOptions::make_state` makes one.
///
/// Copying the struct copies handles of the same tensors; `fork` copies what they hold.
struct RETNET_API RetNetState {
  /// [L, B, H, K, V] float32 (float64 in a float64 model): S_n of each layer.
  at::Tensor retention;
  /// [B] int64: tokens read so far, which is the position of the next token.
  at::Tensor positions;

  /// An independent copy: continuing one leaves the other as it is.
  RetNetState fork() const;

  /// A copy with the given batch rows, in that order; rows may repeat (beam search).
  ///
  ///   rows  [R] int64 or int32, indices into the batch
  RetNetState select(const at::Tensor& rows) const;

  /// The same values cut off from the graph (truncated back-propagation).
  RetNetState detach() const;
};

}  // namespace retnet::nn
