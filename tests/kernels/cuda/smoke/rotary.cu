// SPDX-License-Identifier: Apache-2.0
//
// This file holds every instantiation. launch.cpp asks for them.
#include "kernels/cuda/rotary/kernel.cuh"
#include "kernels/cuda/rotary/launch.cpp"
