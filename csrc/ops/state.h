// SPDX-License-Identifier: Apache-2.0
//
// Checks of a decoding state, which a decode step updates in place.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

#include "ops/check.h"

namespace retnet::ops {

/// Checks that `slots` is [B] int32. On the CPU, the values must be below num_slots, and those that
/// are not negative must be distinct. (A negative value means "skip".) On other devices the values
/// are not read, because that would wait for the device.
inline void check_slots(const char* op, const at::Tensor& slots, const at::Tensor& q,
                        const c10::SymInt& num_slots) {
  check_shape(op, "slots", slots, {q.sym_size(0)}, "[B]");
  check_dtype(op, "slots", slots, at::kInt, "indices into the state");
  check_device(op, "slots", slots, q, "q");
  if (!slots.device().is_cpu()) return;
  const auto values = slots.contiguous();
  const auto* slot = values.const_data_ptr<int32_t>();
  std::vector<std::pair<int32_t, int64_t>> used;  // slot, batch entry
  for (int64_t b = 0; b < values.numel(); ++b) {
    TORCH_CHECK(slot[b] < num_slots, op, ": slots must be below S = ", num_slots, ", got ", slot[b],
                " in batch entry ", b);
    if (slot[b] >= 0) used.emplace_back(slot[b], b);
  }
  std::sort(used.begin(), used.end());
  const auto equal = std::adjacent_find(
      used.begin(), used.end(), [](const auto& a, const auto& b) { return a.first == b.first; });
  TORCH_CHECK(equal == used.end(), op, ": slots must be distinct, got ", equal->first,
              " in batch entries ", equal->second, " and ", std::next(equal)->second);
}

/// Checks that state is [B, H, Dk, Dv], or [S, H, Dk, Dv] with slots, of the accumulation dtype, on
/// q's device.
inline void check_state(const char* op, const at::Tensor& state, const at::Tensor& q,
                        const at::Tensor& v, const std::optional<at::Tensor>& slots) {
  const auto H = q.sym_size(1), Dk = q.sym_size(2), Dv = v.sym_size(2);
  check_rank(op, "state", state, 4, slots ? "[S, H, Dk, Dv]" : "[B, H, Dk, Dv]");
  check_shape(op, "state", state, {slots ? state.sym_size(0) : q.sym_size(0), H, Dk, Dv},
              slots ? "[S, H, Dk, Dv]" : "[B, H, Dk, Dv]");
  check_dtype(op, "state", state, accumulate_dtype(q), "the accumulation dtype");
  check_device(op, "state", state, q, "q");
  if (slots) check_slots(op, *slots, q, state.sym_size(0));
}

/// Checks that the elements of the state share no memory with each other (as in an expanded state)
/// or with one of the named inputs. Every implementation that writes the state calls it. Meta does
/// not, because it has no memory. The check uses strides and the span of addresses. It therefore
/// also refuses two interleaved tensors, unless slicing and permuting dense tensors gives them.
inline void check_state_memory(
    const char* op, const at::Tensor& state,
    std::initializer_list<std::pair<const char*, const at::Tensor&>> inputs) {
  if (state.numel() == 0) return;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < state.dim(); ++d) {
    if (state.size(d) > 1) dims.emplace_back(state.stride(d), state.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;  // the last offset that the dimensions of smaller stride reach
  for (const auto& [stride, size] : dims) {
    TORCH_CHECK(stride > reach, op, ": state must not overlap itself, got shape ", state.sizes(),
                " with strides ", state.strides());
    reach += stride * (size - 1);
  }
  const auto span = [](const at::Tensor& x) {
    int64_t last = 0;
    for (int64_t d = 0; d < x.dim(); ++d) last += x.stride(d) * (x.size(d) - 1);
    const auto* first = static_cast<const char*>(x.const_data_ptr());
    return std::pair(first, first + (last + 1) * static_cast<int64_t>(x.element_size()));
  };
  const auto [begin, end] = span(state);
  for (const auto& [name, x] : inputs) {
    if (x.numel() == 0 || !x.is_alias_of(state)) continue;
    const auto [first, last] = span(x);
    TORCH_CHECK(last <= begin || end <= first, op, ": state must not share memory with ", name,
                ", got tensors that overlap");
  }
}

}  // namespace retnet::ops
