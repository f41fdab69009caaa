// SPDX-License-Identifier: Apache-2.0
#include "simt/runtime/findings.h"

#include <cstdarg>
#include <cstdio>

namespace retnet::simt {

std::vector<Finding> Findings::collect() const {
  const std::lock_guard lock(mutex_);
  std::vector<Finding> result;
  for (const auto& [key, entry] : entries_) {
    Finding finding = entry;
    finding.where = location(std::get<1>(key));
    finding.other = location(std::get<2>(key));
    bool merged = false;
    for (Finding& earlier : result) {
      if (earlier.kind == finding.kind && earlier.where == finding.where &&
          earlier.other == finding.other && !finding.where.empty()) {
        earlier.count += finding.count;
        merged = true;
        break;
      }
    }
    if (!merged) result.push_back(finding);
  }
  return result;
}

std::string format(const char* pattern, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof(text), pattern, arguments);
  va_end(arguments);
  return text;
}

}  // namespace retnet::simt
