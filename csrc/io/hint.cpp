// SPDX-License-Identifier: Apache-2.0
#include "io/hint.h"

#include <algorithm>
#include <numeric>

namespace retnet::io {

namespace {

/// The fewest characters to insert, remove or replace that make `b` of `a` (Levenshtein).
size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<size_t> row(b.size() + 1);  // of the first i characters of a, to each start of b
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

std::string hint(const std::string& name, const std::vector<std::string>& names) {
  const std::string* nearest = nullptr;
  size_t least = name.size() / 3 + 1;  // more than a third wrong is another name
  for (const auto& other : names) {
    const size_t distance = edit_distance(name, other);
    if (distance >= least) continue;
    least = distance;
    nearest = &other;
  }
  return nearest ? " (did you mean '" + *nearest + "'?)" : "";
}

}  // namespace retnet::io
