// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>
#include <vector>

namespace retnet::io {

/// Returns " (did you mean 'x'?)" with the nearest of `names`, or "" if none is near.
std::string hint(const std::string& name, const std::vector<std::string>& names);

}  // namespace retnet::io
