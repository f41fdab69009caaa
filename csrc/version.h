// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#define RETNET_API __attribute__((visibility("default")))

namespace retnet {

/// The version of this library, as "major.minor.patch" (semantic versioning).
RETNET_API std::string version();

}  // namespace retnet
