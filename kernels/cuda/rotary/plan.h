// SPDX-License-Identifier: Apache-2.0
//
// Parameters of the rotary kernel, and what follows from them on the host: which calls it supports, with
// which accesses, in how many threads. This file is plain C++ and needs no CUDA header.
#pragma once

#include <cstdint>

#include "kernels/cuda/dtype.h"

namespace retnet::kernels::cuda {

// Queries or keys. Strides count elements, and the channels are contiguous.
struct RotaryOperand {
  const void* in_ptr = nullptr;  // [B, T, H, Dk]; null: this operand is absent
  int64_t stride_b = 0;
  int64_t stride_t = 0;
  int64_t stride_h = 0;
  void* out_ptr = nullptr;  // [B, T, H, Dk] contiguous
};

struct RotaryParams {
  int64_t batch = 0;        // B
  int64_t tokens = 0;       // T, of a batch entry
  int64_t heads = 0;        // H
  int64_t head_dim_qk = 0;  // Dk
  DType dtype = DType::kFloat32;
  bool interleaved = true;  // pairs of channels (2 i, 2 i + 1), else (i, i + Dk / 2)
  bool inverse = false;     // by the negative angle
  RotaryOperand q, k;
  const void* positions_ptr = nullptr;  // [B, T]
  int64_t positions_stride_b = 0;       // 0: [T]
  int64_t positions_stride_t = 0;
  bool positions_64 = true;                // int64, else int32
  const float* frequencies_ptr = nullptr;  // [Dk / 2] contiguous, radians per position
};

inline constexpr int kRotaryBlock = 128;  // threads
// Blocks per multiprocessor. They bound the registers of a thread to 65,536 / (6 * 128), which is 80.
inline constexpr int kRotaryOccupancy = 6;
// Heads that a thread rotates by the angles that it has computed once.
inline constexpr int kRotaryHeads = 8;

namespace rotary_detail {

// Whether accesses of `vector` elements are aligned. The stride of a dimension of one element or none is
// never used and may be anything.
inline bool aligned(const RotaryParams& p, const RotaryOperand& x, int vector) {
  const auto start = [&](const void* ptr) {
    return reinterpret_cast<uintptr_t>(ptr) % (vector * element_size(p.dtype)) == 0;
  };
  const auto stride = [&](int64_t size, int64_t stride) {
    return size <= 1 || stride % vector == 0;
  };
  return start(x.in_ptr) && start(x.out_ptr) && stride(p.batch, x.stride_b) &&
         stride(p.tokens, x.stride_t) && stride(p.heads, x.stride_h);
}

}  // namespace rotary_detail

// Returns the number of elements per access, 8 (16-bit types) or 4. It is the most that both operands
// allow, or 0 if none is possible. Unless `interleaved`, an access lies in one half of the channels.
inline int rotary_vector(const RotaryParams& p) {
  for (int vector = 8; vector >= 4; vector /= 2) {
    if (vector * element_size(p.dtype) <= 16 &&
        p.head_dim_qk % (p.interleaved ? vector : 2 * vector) == 0 &&
        rotary_detail::aligned(p, p.q, vector) && rotary_detail::aligned(p, p.k, vector)) {
      return vector;
    }
  }
  return 0;
}

// Returns the number of threads of a token, one for each kRotaryHeads heads and each access (and its
// partner, unless `interleaved`). `vector` is not 0.
inline int64_t rotary_threads_per_token(const RotaryParams& p, int vector) {
  const int64_t groups = (p.heads + kRotaryHeads - 1) / kRotaryHeads;
  return groups * (p.head_dim_qk / (p.interleaved ? vector : 2 * vector));
}

// Whether the kernel supports this call. Pointers to outputs may still be null, because the allocations of
// torch are aligned.
inline bool supports_rotary(const RotaryParams& p) {
  constexpr int64_t kMaxThreads = INT32_MAX - kRotaryBlock;  // a thread's index is 32 bits wide
  constexpr int64_t kMaxSize = INT32_MAX;
  if (p.batch < 0 || p.tokens < 0 || p.heads < 0 || p.head_dim_qk <= 0 ||
      p.head_dim_qk > kMaxSize || p.batch > kMaxSize || p.tokens > kMaxSize || p.heads > kMaxSize) {
    return false;
  }
  const int vector = rotary_vector(p);
  if (vector == 0) return false;
  const int64_t per_token = rotary_threads_per_token(p, vector);
  return per_token == 0 || p.batch * p.tokens <= kMaxThreads / per_token;
}

}  // namespace retnet::kernels::cuda
