// SPDX-License-Identifier: Apache-2.0
#include "kernels/retention/segment_scan.cu"
