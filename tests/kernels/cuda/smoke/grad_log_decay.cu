// SPDX-License-Identifier: Apache-2.0
//
// This file holds every instantiation. launch.cpp asks for them.
#include "kernels/cuda/retention/grad_log_decay/kernel.cuh"
#include "kernels/cuda/retention/grad_log_decay/launch.cpp"
