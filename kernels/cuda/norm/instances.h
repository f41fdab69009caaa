// SPDX-License-Identifier: Apache-2.0
//
// The typed launchers, each instantiated in a file of its own (kernels/CMakeLists.txt lists the
// pairs of kDtype and kVector). `params` has been found supported and not empty.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/norm/plan.h"

namespace retnet::kernels::cuda {

template <DType kDtype, int kVector>
cudaError_t gated_group_norm_forward_launch(const GatedGroupNormParams& params,
                                            cudaStream_t stream);

template <DType kDtype, int kVector>
cudaError_t gated_group_norm_backward_launch(const GatedGroupNormBackwardParams& params,
                                             cudaStream_t stream);

}  // namespace retnet::kernels::cuda
