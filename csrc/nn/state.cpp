// SPDX-License-Identifier: Apache-2.0
#include "nn/state.h"

namespace retnet::nn {

RetNetState RetNetState::fork() const { return {retention.clone(), positions.clone()}; }

RetNetState RetNetState::select(const at::Tensor& rows) const {
  return {retention.index_select(1, rows), positions.index_select(0, rows)};
}

RetNetState RetNetState::detach() const { return {retention.detach(), positions}; }

}  // namespace retnet::nn
