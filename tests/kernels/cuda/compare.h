// SPDX-License-Identifier: Apache-2.0
//
// The tolerance table of docs/numerics.md, and the comparison of a kernel's result in the SIMT emulator with
// a float64 reference, as tests/python/support/tolerances.py has them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/dtype.h"
#include "simt/numeric.h"

namespace retnet::kernels::cuda {

struct Tolerance {
  double whole;      // |x - reference| / |reference| over the tensor
  double worst_row;  // the worst |row error| / max(|row|, root mean square of the row norms)
};

constexpr Tolerance tolerance(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return {2e-6, 1e-5};
    case DType::kFloat16:
      return {7e-4, 3e-3};
    case DType::kBFloat16:
      return {5e-3, 2e-2};
  }
  return {0, 0};
}

// Returns `count` elements of `dtype` at `data`.
inline std::vector<double> to_doubles(const void* data, size_t count, DType dtype) {
  std::vector<double> values(count);
  for (size_t i = 0; i < count; ++i) {
    if (dtype == DType::kFloat32) {
      values[i] = static_cast<const float*>(data)[i];
    } else {
      const uint16_t bits = static_cast<const uint16_t*>(data)[i];
      values[i] =
          dtype == DType::kBFloat16 ? simt::bfloat16_to_float(bits) : simt::float16_to_float(bits);
    }
  }
  return values;
}

// Returns an empty string if `actual` is within `factor` times the tolerance of `dtype`, or otherwise what is
// wrong. Elements that are not finite are counted separately, because a norm would lose them.
inline std::string mismatch(std::span<const double> actual, std::span<const double> reference,
                            size_t row_size, DType dtype, double factor) {
  char text[160];
  const size_t bad = std::count_if(actual.begin(), actual.end(),
                                   [](double value) { return !std::isfinite(value); });
  if (bad > 0 || actual.size() != reference.size()) {
    std::snprintf(text, sizeof(text), "%zu elements of %zu are not finite", bad, actual.size());
    return text;
  }
  double error = 0, norm = 0;
  std::vector<double> row_error, row_norm;
  for (size_t start = 0; start < actual.size(); start += row_size) {
    double e = 0, n = 0;
    for (size_t i = start; i < start + row_size; ++i) {
      e += (actual[i] - reference[i]) * (actual[i] - reference[i]);
      n += reference[i] * reference[i];
    }
    row_error.push_back(std::sqrt(e));
    row_norm.push_back(std::sqrt(n));
    error += e;
    norm += n;
  }
  if (actual.empty()) return "";
  if (norm == 0) return error == 0 ? "" : "must be zero";
  const double typical = std::sqrt(norm / static_cast<double>(row_norm.size()));
  const double whole = std::sqrt(error / norm);
  double worst = 0;
  for (size_t i = 0; i < row_norm.size(); ++i) {
    worst = std::max(worst, row_error[i] / std::max(row_norm[i], typical));
  }
  const Tolerance limit = tolerance(dtype);
  if (whole <= factor * limit.whole && worst <= factor * limit.worst_row) return "";
  std::snprintf(text, sizeof(text), "error %.2e (limit %.0e), of the worst row %.2e (limit %.0e)",
                whole, factor * limit.whole, worst, factor * limit.worst_row);
  return text;
}

}  // namespace retnet::kernels::cuda
