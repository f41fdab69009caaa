// SPDX-License-Identifier: Apache-2.0
//
// What a stream's capture records: launches of kernels, and calls of torch's operators, which stand for the
// kernels that they would launch on a GPU.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "machine/memory.h"

namespace retnet::on_simt {

class Graph {
 public:
  void add(std::function<void()> node) { nodes_.push_back(std::move(node)); }
  void add_launch(const simt::LaunchShape& shape, void (*trampoline)(const void*),
                  const void* arguments, size_t argument_bytes);
  void replay() const;

  /// Memory that is allocated during the capture belongs to the graph.
  std::shared_ptr<Pool> pool = std::make_shared<Pool>();
  bool invalidated = false;

 private:
  std::vector<std::function<void()>> nodes_;
};

/// Whether this thread's calls of operators go into the graph that its current stream captures.
void record_operators(bool enabled);

}  // namespace retnet::on_simt
