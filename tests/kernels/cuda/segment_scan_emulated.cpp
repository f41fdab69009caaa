// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/retention/segment_scan.cu"
