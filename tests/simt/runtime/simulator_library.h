// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "simt/runtime_library.h"

namespace retnet::simt {

// Takes the calls on behalf of the Simulator of the calling thread.
RuntimeLibrary& simulator_library();

}  // namespace retnet::simt
