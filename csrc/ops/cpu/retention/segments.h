// SPDX-License-Identifier: Apache-2.0
//
// The states at the boundaries of segments. As in the CUDA kernels, the work has three parts:
//   1. Each segment is walked from a state of zeros to its local end state, side by side.
//   2. A scan over the segments turns these into the states at the boundaries.
//   3. The caller computes each segment from its boundary state.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "ops/cpu/retention/decay_tables.h"
#include "ops/cpu/retention/schedule.h"

namespace retnet::ops::cpu {

/// Returns the initial state of every segment, [segments, H, Dk, Dv], computed forward in time from
/// `initial_state`. If that is undefined, it stands for zeros.
at::Tensor segment_initial_states(const retnet::kernels::cpu::KernelTable& kernels,
                                  const HeadDecayTables& decay, const at::Tensor& log_decay,
                                  const std::vector<Segment>& segments, const at::Tensor& k,
                                  const at::Tensor& v, const at::Tensor& initial_state);

/// Returns the gradient of the final state of every segment, [segments, H, Dk, Dv], computed
/// backward in time from `grad_final_state`. If that is undefined, it stands for zeros.
at::Tensor segment_grad_final_states(const retnet::kernels::cpu::KernelTable& kernels,
                                     const HeadDecayTables& decay, const at::Tensor& log_decay,
                                     const std::vector<Segment>& segments, const at::Tensor& q,
                                     const at::Tensor& grad_out,
                                     const at::Tensor& grad_final_state);

}  // namespace retnet::ops::cpu
