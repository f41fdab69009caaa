// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/retention/chunkwise/segment_scan.cu"
