// SPDX-License-Identifier: Apache-2.0
//
// The states at the boundaries of segments. As in the CUDA kernels there are three steps: the local
// end state of each segment, from zeros, side by side; a scan over the segments; and then, by the
// caller, each segment from its boundary state.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "ops/cpu/retention/decay_tables.h"
#include "ops/cpu/retention/schedule.h"

namespace retnet::ops::cpu {

/// The initial state of every segment, [segments, H, Dk, Dv], forward in time from `initial_state`
/// (undefined: zeros).
at::Tensor segment_initial_states(const retnet::kernels::cpu::KernelTable& kernels,
                                  const HeadDecayTables& decay, const at::Tensor& log_decay,
                                  const std::vector<Segment>& segments, const at::Tensor& k,
                                  const at::Tensor& v, const at::Tensor& initial_state);

/// The gradient of the final state of every segment, [segments, H, Dk, Dv], backward in time from
/// `grad_final_state` (undefined: zeros).
at::Tensor segment_grad_final_states(const retnet::kernels::cpu::KernelTable& kernels,
                                     const HeadDecayTables& decay, const at::Tensor& log_decay,
                                     const std::vector<Segment>& segments, const at::Tensor& q,
                                     const at::Tensor& grad_out,
                                     const at::Tensor& grad_final_state);

}  // namespace retnet::ops::cpu
