// SPDX-License-Identifier: Apache-2.0
//
// This file holds every instantiation. launch.cpp asks for them.
#include "kernels/cuda/retention/chunkwise/kernel.cuh"
#include "kernels/cuda/retention/chunkwise/launch.cpp"
#include "kernels/cuda/retention/chunkwise/segment_scan.cu"
