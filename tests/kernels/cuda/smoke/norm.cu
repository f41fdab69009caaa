// SPDX-License-Identifier: Apache-2.0
//
// This file holds every instantiation. launch.cpp asks for them.
#include "column_sum_emulated.cpp"
#include "kernels/cuda/norm/backward_kernel.cuh"
#include "kernels/cuda/norm/forward_kernel.cuh"
#include "kernels/cuda/norm/launch.cpp"
