// SPDX-License-Identifier: Apache-2.0
//
// Every instantiation in one file: launch.cpp asks for them.
#include "kernels/cuda/retention/chunkwise/kernel.cuh"
#include "kernels/cuda/retention/chunkwise/launch.cpp"
#include "kernels/cuda/retention/chunkwise/segment_scan.cu"
