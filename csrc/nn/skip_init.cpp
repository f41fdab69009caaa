// SPDX-License-Identifier: Apache-2.0
#include "nn/skip_init.h"

namespace retnet::nn {

namespace {

thread_local int living = 0;

}  // namespace

SkipInit::SkipInit() { ++living; }

SkipInit::~SkipInit() { --living; }

bool SkipInit::active() { return living > 0; }

}  // namespace retnet::nn
