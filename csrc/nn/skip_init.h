// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "../version.h"

namespace retnet::nn {

/// While an object of this class exists, modules created on its thread leave their parameters
/// uninitialised. Code that then reads the parameters from a file saves time: for a large model,
/// drawing random numbers takes longer than reading the file.
class RETNET_API SkipInit {
 public:
  SkipInit();
  ~SkipInit();
  SkipInit(const SkipInit&) = delete;
  SkipInit& operator=(const SkipInit&) = delete;

  /// Returns whether such an object exists on this thread.
  static bool active();
};

}  // namespace retnet::nn
