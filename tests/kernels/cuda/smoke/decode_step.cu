// SPDX-License-Identifier: Apache-2.0
//
// Every instantiation in one file: launch.cpp asks for them.
#include "kernels/cuda/retention/decode_step/kernel.cuh"
#include "kernels/cuda/retention/decode_step/launch.cpp"
