// SPDX-License-Identifier: Apache-2.0
//
// Benchmarks time torch.ops.retnet._multiply_adds to find the most that the
// instruction set of the kernels can do.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <atomic>

#include "ops/cpu/instruction_set.h"

namespace retnet::ops {
namespace {

/// Multiplies and adds between registers `repetitions` times on each thread of torch. Returns the
/// number of floating-point operations. The schema calls the argument `steps`.
double multiply_adds(at::ScalarType dtype, int64_t repetitions) {
  const auto& set = cpu::instruction_set();
  const auto peak = dtype == at::kBFloat16 ? set.peak_bfloat16 : set.peak_float32;
  std::atomic<double> flop{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float sink = 0.5F;
      flop += peak(repetitions, &sink);
    }
  });
  return flop;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(retnet, m) {
  m.def("_multiply_adds(ScalarType dtype, int steps) -> float flop", multiply_adds);
}

}  // namespace retnet::ops
