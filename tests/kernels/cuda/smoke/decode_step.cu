// SPDX-License-Identifier: Apache-2.0
//
// This file holds every instantiation. launch.cpp asks for them.
#include "kernels/cuda/retention/decode_step/kernel.cuh"
#include "kernels/cuda/retention/decode_step/launch.cpp"
