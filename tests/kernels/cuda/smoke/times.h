// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace retnet::smoke {

/// Times the launches of a kernel at its headline shape and prints a line for each. Throws if a launch
/// fails. It needs a GPU.
void print_times(const std::string& kernel);

}  // namespace retnet::smoke
