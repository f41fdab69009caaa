// SPDX-License-Identifier: Apache-2.0
//
// Stands in for CUDA's header of this name where kernels are emulated: the calls of the runtime library
// that launch kernels. Kernels take their parameters by value, from a copy that outlives the launch.
#pragma once

#include <cuda_runtime_api.h>

#include <tuple>

#include "simt/device.h"

namespace retnet::simt {

template <class... Args>
struct Call {
  void (*kernel)(Args...);
  std::tuple<Args...> args;
  static void run(const void* call) {
    const Call& self = *static_cast<const Call*>(call);
    std::apply(self.kernel, self.args);
  }
};

}  // namespace retnet::simt

template <class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Args...),
                               Args... args) {
  using Call = retnet::simt::Call<Args...>;
  const Call call{kernel, {args...}};
  return retnet::simt::launch(retnet::simt::shape_of(*config, reinterpret_cast<void*>(kernel)),
                              &Call::run, &call, sizeof(call));
}

template <class... Args>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Args...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class... Args>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, void (*kernel)(Args...)) {
  return cudaFuncGetAttributes(attributes, reinterpret_cast<const void*>(kernel));
}
