// SPDX-License-Identifier: Apache-2.0
//
// Every instantiation in one file: launch.cpp asks for them.
#include "kernels/cuda/rotary/kernel.cuh"
#include "kernels/cuda/rotary/launch.cpp"
