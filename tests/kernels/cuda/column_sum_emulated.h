// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "kernels/cuda/norm/launch.h"

namespace retnet::kernels::cuda {

// Runs launch_column_sum on so few blocks that each takes several groups of columns. launch_column_sum alone
// does that only above 2^25 columns.
cudaError_t launch_column_sum_on(unsigned blocks, const ColumnSumParams& params);

}  // namespace retnet::kernels::cuda
