// SPDX-License-Identifier: Apache-2.0
#include "io/hint.h"

#include <algorithm>

namespace retnet::io {

namespace {

/// The least number of edits that turn `a` into `b`: inserting, removing or replacing a character,
/// or swapping two neighbours (optimal string alignment).
size_t edit_distance(const std::string& a, const std::string& b) {
  // distance[i][j]: from the first i characters of a to the first j of b
  std::vector<std::vector<size_t>> distance(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      auto& least = distance[i][j];
      least = std::max(i, j);  // right if one of them is empty
      if (i == 0 || j == 0) continue;
      least = std::min({distance[i - 1][j - 1] + (a[i - 1] != b[j - 1]), distance[i - 1][j] + 1,
                        distance[i][j - 1] + 1});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        least = std::min(least, distance[i - 2][j - 2] + 1);
      }
    }
  }
  return distance[a.size()][b.size()];
}

}  // namespace

std::string hint(const std::string& name, const std::vector<std::string>& names) {
  const std::string* nearest = nullptr;
  size_t least = name.size() / 3 + 1;  // it is another name if more than a third differs
  for (const auto& other : names) {
    const size_t distance = edit_distance(name, other);
    if (distance >= least) continue;
    least = distance;
    nearest = &other;
  }
  return nearest ? " (did you mean '" + *nearest + "'?)" : "";
}

}  // namespace retnet::io
