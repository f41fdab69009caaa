// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/isa/instance.h"
#include "kernels/cpu/isa/registry.h"

namespace retnet::kernels::cpu {
namespace {

struct Portable {
  static constexpr int kLanes = 4;
  static constexpr int kTileRows = 4;
};

}  // namespace

// It is constinit because the initialisation of kEmulated reads it.
constinit const InstructionSet kPortable =
    make_instruction_set<Portable>("portable", [] { return true; });

}  // namespace retnet::kernels::cpu
