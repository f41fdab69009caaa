// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../version.h"

namespace retnet::nn {

/// While one lives, modules made on its thread leave their parameters uninitialised, for whoever
/// fills them at once: drawing the numbers of a large model takes longer than reading them.
class RETNET_API SkipInit {
 public:
  SkipInit();
  ~SkipInit();
  SkipInit(const SkipInit&) = delete;
  SkipInit& operator=(const SkipInit&) = delete;

  /// True while one lives on this thread.
  static bool active();
};

}  // namespace retnet::nn
