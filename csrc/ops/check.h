// SPDX-License-Identifier: Apache-2.0
//
// Argument checks that the operators share. Each message names the operator, the argument, the
// requirement and the actual value:
//     retention: k must have shape [B, T, H, Dk] = [2, 64, 4, 32], got [2, 64, 4, 16]
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <string>

namespace retnet::ops {

/// Returns the dtype in which an operator accumulates and keeps its state. It is float64 for
/// float64 inputs, else float32.
inline at::ScalarType accumulate_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// Returns the name of the dtype in Python, such as "float32".
inline std::string dtype_name(at::ScalarType dtype) {
  return std::string(c10::getDtypeNames(dtype).first);
}

/// Checks that `t` is float32, float64, bfloat16 or float16.
inline void check_floating(const char* op, const char* name, const at::Tensor& t) {
  const auto dtype = t.scalar_type();
  TORCH_CHECK(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      op, ": ", name, " must be float32, float64, bfloat16 or float16, got ", dtype_name(dtype));
}

/// Checks that `t` has dtype `dtype`. `why` gives the reason ("like q", "the accumulation dtype").
inline void check_dtype(const char* op, const char* name, const at::Tensor& t, at::ScalarType dtype,
                        const char* why) {
  TORCH_CHECK(t.scalar_type() == dtype, op, ": ", name, " must be ", dtype_name(dtype), " (", why,
              "), got ", dtype_name(t.scalar_type()));
}

/// Checks that `t` is an index tensor: int32 or int64.
inline void check_integer(const char* op, const char* name, const at::Tensor& t) {
  TORCH_CHECK(t.scalar_type() == at::kInt || t.scalar_type() == at::kLong, op, ": ", name,
              " must be int32 or int64, got ", dtype_name(t.scalar_type()));
}

/// Checks that `t` is on the device of `other`, the argument called `other_name`.
inline void check_device(const char* op, const char* name, const at::Tensor& t,
                         const at::Tensor& other, const char* other_name) {
  TORCH_CHECK(t.device() == other.device(), op, ": ", name, " must be on ", other_name,
              "'s device ", other.device(), ", got ", t.device());
}

/// Checks that `t` has `rank` dimensions, which `layout` names:
///     check_rank("retention", "q", q, 4, "[B, T, H, Dk]")
inline void check_rank(const char* op, const char* name, const at::Tensor& t, int64_t rank,
                       const char* layout) {
  TORCH_CHECK(t.dim() == rank, op, ": ", name, " must have shape ", layout, ", got ",
              t.sym_sizes());
}

/// Checks that `t` has the sizes `expected`, which `layout` names.
inline void check_shape(const char* op, const char* name, const at::Tensor& t,
                        std::initializer_list<c10::SymInt> expected, const char* layout) {
  const c10::SymIntArrayRef sizes(expected.begin(), expected.size());
  TORCH_CHECK(t.sym_sizes() == sizes, op, ": ", name, " must have shape ", layout, " = ", sizes,
              ", got ", t.sym_sizes());
}

/// Checks that `t` has the shape, dtype and device of `other`, the argument called `other_name`.
inline void check_like(const char* op, const char* name, const at::Tensor& t,
                       const at::Tensor& other, const char* other_name) {
  TORCH_CHECK(t.sym_sizes() == other.sym_sizes(), op, ": ", name, " must have ", other_name,
              "'s shape ", other.sym_sizes(), ", got ", t.sym_sizes());
  check_dtype(op, name, t, other.scalar_type(), (std::string("like ") + other_name).c_str());
  check_device(op, name, t, other, other_name);
}

}  // namespace retnet::ops
