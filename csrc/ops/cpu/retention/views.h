// SPDX-License-Identifier: Apache-2.0
//
// Views of tensors as the retention kernels take them: the tokens and the state of one head.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/cpu/retention/params.h"
#include "ops/cpu/retention/schedule.h"

namespace retnet::ops::cpu {

/// Returns x, or a copy if its last dimension is not dense.
inline at::Tensor with_dense_channels(const at::Tensor& x) {
  return x.stride(-1) == 1 ? x : x.clone(at::MemoryFormat::Contiguous);
}

/// Returns the offset in bytes of the first token of a segment in head `head` of x [B, T, H, D], at
/// channel `first`.
inline int64_t token_offset(const at::Tensor& x, const Segment& segment, int64_t head,
                            int64_t first) {
  const int64_t offset =
      segment.batch * x.stride(0) + segment.first_token * x.stride(1) + head * x.stride(2) + first;
  return offset * static_cast<int64_t>(x.element_size());
}

/// Returns a view of the tokens of a segment in head `head` of x [B, T, H, D], from channel `first`
/// on. It is null if x is undefined.
inline retnet::kernels::cpu::TokenView make_token_view(const at::Tensor& x, const Segment& segment,
                                                       int64_t head, int64_t first = 0) {
  if (!x.defined()) return {};
  const auto* ptr = static_cast<const char*>(x.const_data_ptr());
  return {ptr + token_offset(x, segment, head, first), x.stride(1)};
}
inline retnet::kernels::cpu::MutableTokenView make_mutable_token_view(const at::Tensor& x,
                                                                      const Segment& segment,
                                                                      int64_t head,
                                                                      int64_t first = 0) {
  if (!x.defined()) return {};
  auto* ptr = static_cast<char*>(x.mutable_data_ptr());
  return {ptr + token_offset(x, segment, head, first), x.stride(1)};
}

/// Returns a view of the state of head `head` in entry n of states [N, H, Dk, Dv] of any strides.
/// It is null if states is undefined.
inline retnet::kernels::cpu::StateView state_view(const at::Tensor& states, int64_t n,
                                                  int64_t head) {
  if (!states.defined()) return {};
  const auto* ptr = states.const_data_ptr<float>();
  return {ptr + n * states.stride(0) + head * states.stride(1), states.stride(2), states.stride(3)};
}
inline retnet::kernels::cpu::MutableStateView mutable_state_view(const at::Tensor& states,
                                                                 int64_t n, int64_t head) {
  if (!states.defined()) return {};
  auto* ptr = states.mutable_data_ptr<float>();
  return {ptr + n * states.stride(0) + head * states.stride(1), states.stride(2), states.stride(3)};
}

/// Returns the view from a row and a column on. A null view stays null.
template <class View>
View offset_state(const View& state, int64_t row, int64_t column) {
  if (state.ptr == nullptr) return state;
  return {state.ptr + row * state.row_stride + column * state.column_stride, state.row_stride,
          state.column_stride};
}

template <class View>
View transposed(const View& state) {
  return {state.ptr, state.column_stride, state.row_stride};
}

}  // namespace retnet::ops::cpu
