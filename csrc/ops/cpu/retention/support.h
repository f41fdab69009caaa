// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "kernels/cpu/retention/params.h"

namespace retnet::ops::cpu {

/// Why the kernels do not support a call of retention or of its gradients; null if they do.
inline const char* unsupported_reason(const at::Tensor& q, std::string_view form,
                                      std::optional<int64_t> chunk_size) {
  using retnet::kernels::cpu::kChunk;
  if (form != "chunkwise") return "the kernel supports only form=\"chunkwise\"";
  if (q.scalar_type() == at::kDouble)
    return "the kernel supports only float32, bfloat16 and float16";
  if (chunk_size.value_or(kChunk) != kChunk) return "the kernel supports only chunk_size=64";
  return nullptr;
}

}  // namespace retnet::ops::cpu
