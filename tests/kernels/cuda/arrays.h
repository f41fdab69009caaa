// SPDX-License-Identifier: Apache-2.0
//
// Inputs of kernels that run in the SIMT emulator.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "compare.h"
#include "kernels/cuda/dtype.h"
#include "simt/numeric.h"

namespace retnet::kernels::cuda {

/// An array of `dtype` on the device, and its values.
struct Array {
  std::vector<std::byte> bytes;
  std::vector<double> values;
};

inline Array encode(const std::vector<double>& values, DType dtype) {
  Array array;
  array.bytes.resize(values.size() * element_size(dtype));
  for (size_t i = 0; i < values.size(); ++i) {
    const auto value = static_cast<float>(values[i]);
    std::byte* dst = array.bytes.data() + i * element_size(dtype);
    if (dtype == DType::kFloat32) {
      std::memcpy(dst, &value, 4);
    } else {
      const uint16_t bits = dtype == DType::kBFloat16 ? simt::float_to_bfloat16(value)
                                                      : simt::float_to_float16(value);
      std::memcpy(dst, &bits, 2);
    }
  }
  array.values = to_doubles(array.bytes.data(), values.size(), dtype);
  return array;
}

inline std::vector<double> random_values(size_t count, double mean, double deviation,
                                         unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal(mean, deviation);
  std::vector<double> values(count);
  for (double& value : values) value = normal(generator);
  return values;
}

}  // namespace retnet::kernels::cuda
