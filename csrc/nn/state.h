// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include "../version.h"

namespace retnet::nn {

/// What a RetNet remembers of the tokens it has read. It holds S_n of every layer (Sun et al. 2023,
/// Eq. 6). Its size does not depend on the length of the text. `RetNetOptions::make_state` creates
/// one.
///
/// Copying the struct copies handles of the same tensors. `fork` copies the values.
struct RETNET_API RetNetState {
  /// [L, B, H, K, V] float32 (float64 in a float64 model): S_n of each layer.
  at::Tensor retention;
  /// [B] int64: the number of tokens read so far. This is the position of the next token.
  at::Tensor positions;

  /// Returns an independent copy. Decoding with one does not change the other.
  RetNetState fork() const;

  /// Returns a copy with the given batch entries, in that order. Entries may repeat, as in beam
  /// search.
  ///
  ///   rows  [R] int64 or int32, indices of batch entries
  RetNetState select(const at::Tensor& rows) const;

  /// Returns the same values detached from the graph (truncated back-propagation).
  RetNetState detach() const;
};

}  // namespace retnet::nn
