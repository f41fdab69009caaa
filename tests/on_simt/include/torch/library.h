// SPDX-License-Identifier: Apache-2.0
//
// Torch's header, after which TORCH_LIBRARY_IMPL registers for the CPU what is written for CUDA.
#pragma once

#include_next <torch/library.h>

#undef TORCH_LIBRARY_IMPL
#define RETNET_KEY_OF_CUDA CPU
#define RETNET_LIBRARY_IMPL(ns, key, m) _TORCH_LIBRARY_IMPL(ns, key, m, C10_UID)
#define TORCH_LIBRARY_IMPL(ns, key, m) RETNET_LIBRARY_IMPL(ns, RETNET_KEY_OF_##key, m)
