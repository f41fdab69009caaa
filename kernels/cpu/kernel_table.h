// SPDX-License-Identifier: Apache-2.0
//
// The kernels as tables of functions. The code above the kernels sees nothing else of an
// instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/cross_entropy/params.h"
#include "kernels/cpu/linear/params.h"
#include "kernels/cpu/norm/params.h"
#include "kernels/cpu/retention/params.h"
#include "kernels/cpu/rotary/params.h"

namespace retnet::kernels::cpu {

/// The kernels for one dtype on one instruction set. Each kernel writes every element of the
/// results that are required. A retention kernel works in `workspace`, whose size in bytes the
/// function before it returns.
struct KernelTable {
  size_t (*retention_forward_workspace_bytes)(const RetentionForwardParams&);
  void (*retention_forward)(const RetentionForwardParams&, void* workspace);
  size_t (*retention_backward_workspace_bytes)(const RetentionBackwardParams&);
  void (*retention_backward)(const RetentionBackwardParams&, void* workspace);
  void (*gated_group_norm)(const GatedGroupNormParams&);
  void (*gated_group_norm_backward)(const GatedGroupNormBackwardParams&);
  void (*rotary)(const RotaryParams&);
  double (*cross_entropy)(const CrossEntropyParams&);
  /// to_floats converts a dense row [channels] of the dtype to floats. from_floats rounds floats to
  /// such a row.
  void (*to_floats)(const void* row, int64_t channels, float* floats);
  void (*from_floats)(const float* floats, int64_t channels, void* row);
};

/// The kernels on one instruction set.
struct InstructionSet {
  const char* name;
  bool (*is_supported)();
  KernelTable float32, bfloat16, float16;
  void (*cos_sin)(const CosSinParams&);
  void (*decode_step)(const DecodeStepParams&);
  void (*pack_linear_token)(const LinearTokenParams&);
  void (*linear)(const LinearParams&);
  /// These multiply and add between registers `repetitions` times, floats or what the bfloat16
  /// kernels multiply. *sink keeps the sums. They return the number of floating-point operations.
  double (*peak_float32)(int64_t repetitions, float* sink);
  double (*peak_bfloat16)(int64_t repetitions, float* sink);
};

}  // namespace retnet::kernels::cpu
