// SPDX-License-Identifier: Apache-2.0
#include "version.h"

namespace retnet {

std::string version() { return RETNET_VERSION; }

}  // namespace retnet
