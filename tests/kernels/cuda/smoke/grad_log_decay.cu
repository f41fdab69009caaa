// SPDX-License-Identifier: Apache-2.0
//
// Every instantiation in one file: launch.cpp asks for them.
#include "kernels/cuda/retention/grad_log_decay/kernel.cuh"
#include "kernels/cuda/retention/grad_log_decay/launch.cpp"
