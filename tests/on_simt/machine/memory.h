// SPDX-License-Identifier: Apache-2.0
//
// The memory of tensors comes from an allocator that replaces torch's CPU allocator. It knows the stream
// that owns each block, and the work that reaches the block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "machine/machine.h"
#include "simt/simt.h"

namespace retnet::on_simt {

/// Memory that a graph allocates while it is captured. Its blocks live as long as it does.
class Pool {
 public:
  ~Pool();
  std::vector<void*> freed;
};

/// Replaces the allocator.
void install_allocator();

/// The block that holds an address of a tensor.
std::optional<simt::Outside> find_block(uintptr_t address);

/// The launch on `stream` has reached that memory. This finds the work that is not ordered before it.
void note_access(const simt::Touched& touched, Stream& stream);

}  // namespace retnet::on_simt
