// SPDX-License-Identifier: Apache-2.0
//
// The primitives that kernels are written in, and the one seam between a GPU and the SIMT emulator. With
// RETNET_EMULATE the emulator's header supplies the names of prim/cuda.cuh. What stands before and behind
// the seam is the same for both.
#pragma once

#include "kernels/cuda/prim/launch.cuh"

#ifdef RETNET_EMULATE
#include "simt/emulate.h"
#else
#include "kernels/cuda/prim/cuda.cuh"
#endif

namespace retnet::kernels::cuda::prim {

RETNET_DEVICE constexpr int min(int a, int b) { return a < b ? a : b; }
RETNET_DEVICE constexpr int max(int a, int b) { return a < b ? b : a; }

template <DType kDtype>
inline constexpr int kElementSize = element_size(kDtype);  // device code may not call the function

// kCount consecutive elements of a row as they lie in memory, for one access of 8 or 16 bytes or several of
// 16.
template <DType kDtype, int kCount>
struct Packet {
  static constexpr int kBytes = kCount * kElementSize<kDtype>;
  static constexpr int kAccess = kBytes < 16 ? kBytes : 16;
  static constexpr int kWords = kAccess / 4;
  static_assert(kAccess >= 8 && kBytes % kAccess == 0, "accesses are of 8 or 16 bytes");
  uint32_t words[kBytes / kAccess][kWords];
};

// `offset` counts elements from `base`. The address must be a multiple of Packet::kAccess bytes.
template <DType kDtype, int kCount>
RETNET_DEVICE Packet<kDtype, kCount> load_readonly_packet(const void* base, int64_t offset) {
  Packet<kDtype, kCount> packet;
  const char* src = static_cast<const char*>(base) + offset * kElementSize<kDtype>;
  RETNET_UNROLL
  for (int i = 0; i < packet.kBytes / packet.kAccess; ++i) {
    load_readonly(packet.words[i], src + i * packet.kAccess);
  }
  return packet;
}

// The same, for memory that the kernel itself writes.
template <DType kDtype, int kCount>
RETNET_DEVICE Packet<kDtype, kCount> load_packet(const void* base, int64_t offset) {
  Packet<kDtype, kCount> packet;
  const char* src = static_cast<const char*>(base) + offset * kElementSize<kDtype>;
  RETNET_UNROLL
  for (int i = 0; i < packet.kBytes / packet.kAccess; ++i) {
    load(packet.words[i], src + i * packet.kAccess);
  }
  return packet;
}

template <DType kDtype, int kCount>
RETNET_DEVICE void store_packet(void* base, int64_t offset, const Packet<kDtype, kCount>& packet) {
  char* dst = static_cast<char*>(base) + offset * kElementSize<kDtype>;
  RETNET_UNROLL
  for (int i = 0; i < packet.kBytes / packet.kAccess; ++i) {
    store(dst + i * packet.kAccess, packet.words[i]);
  }
}

template <DType kDtype, int kCount>
RETNET_DEVICE void unpack(const Packet<kDtype, kCount>& packet, float (&values)[kCount]) {
  constexpr int kPerWord = 4 / kElementSize<kDtype>;
  RETNET_UNROLL
  for (int i = 0; i < kCount / kPerWord; ++i) {
    const uint32_t word = packet.words[i / packet.kWords][i % packet.kWords];
    if constexpr (kPerWord == 1) {
      values[i] = word_to_float(word);
    } else {
      unpack_pair<kDtype>(word, values[2 * i], values[2 * i + 1]);
    }
  }
}

template <DType kDtype, int kCount>
RETNET_DEVICE Packet<kDtype, kCount> pack(const float (&values)[kCount]) {
  constexpr int kPerWord = 4 / kElementSize<kDtype>;
  Packet<kDtype, kCount> packet;
  RETNET_UNROLL
  for (int i = 0; i < kCount / kPerWord; ++i) {
    uint32_t& word = packet.words[i / packet.kWords][i % packet.kWords];
    if constexpr (kPerWord == 1) {
      word = float_to_word(values[i]);
    } else {
      word = pack_pair<kDtype>(values[2 * i], values[2 * i + 1]);
    }
  }
  return packet;
}

// Load one element, and store one rounded to nearest even.
template <DType kDtype>
RETNET_DEVICE float load_element(const void* base, int64_t offset) {
  if constexpr (kDtype == DType::kFloat32) {
    return static_cast<const float*>(base)[offset];
  } else {
    float value, none;
    unpack_pair<kDtype>(static_cast<const uint16_t*>(base)[offset], value, none);
    return value;
  }
}
template <DType kDtype>
RETNET_DEVICE void store_element(void* base, int64_t offset, float value) {
  if constexpr (kDtype == DType::kFloat32) {
    static_cast<float*>(base)[offset] = value;
  } else {
    static_cast<uint16_t*>(base)[offset] = static_cast<uint16_t>(pack_pair<kDtype>(value, 0));
  }
}

}  // namespace retnet::kernels::cuda::prim
