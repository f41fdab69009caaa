// SPDX-License-Identifier: Apache-2.0
#include "ops/cross_entropy.h"

#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "ops/composite/cross_entropy.h"
#include "ops/cpu/instruction_set.h"
#include "ops/cpu/parallel.h"

namespace retnet::ops {
namespace {

constexpr int64_t kLogitsPerTask = 1 << 17;

at::Tensor cross_entropy_cpu(const at::Tensor& logits, const at::Tensor& targets,
                             int64_t ignore_index) {
  if (logits.scalar_type() == at::kDouble) {
    return composite::cross_entropy_with_gradient_(logits, targets, ignore_index);
  }
  check_cross_entropy(logits, targets);
  check_cross_entropy_memory(logits, targets, ignore_index);
  const auto& kernels = cpu::kernels_for(cpu::instruction_set(), logits.scalar_type());
  const int64_t N = logits.size(0), V = logits.size(1);
  const auto item = static_cast<int64_t>(logits.element_size()), stride = logits.stride(0) * item;
  auto* rows = static_cast<char*>(logits.mutable_data_ptr());
  const auto dense_targets = targets.contiguous();
  const auto* target = dense_targets.const_data_ptr<int64_t>();
  std::vector<double> losses(N);
  const int64_t rows_per_task = std::max<int64_t>(1, kLogitsPerTask / V);
  const int64_t tasks = (N + rows_per_task - 1) / rows_per_task;
  cpu::run_tasks(tasks, V * sizeof(float), [&](int64_t task, void* workspace) {
    const int64_t end = std::min(N, (task + 1) * rows_per_task);
    for (int64_t n = task * rows_per_task; n < end; ++n) {
      char* row = rows + n * stride;
      if (target[n] == ignore_index) {
        std::memset(row, 0, V * item);
      } else {
        losses[n] = kernels.cross_entropy({V, target[n], row, static_cast<float*>(workspace)});
      }
    }
  });
  // The losses are added in order, so that the sum does not depend on which thread took which row.
  const double loss = std::accumulate(losses.begin(), losses.end(), 0.0);
  return at::scalar_tensor(loss, logits.options().dtype(at::kFloat));
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CPU, m) { m.impl("cross_entropy_with_gradient_", cross_entropy_cpu); }

}  // namespace retnet::ops
