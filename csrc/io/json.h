// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <c10/util/Exception.h>

#include <nlohmann/json.hpp>
#include <string>

namespace retnet::io {

/// Parses JSON. Raises nlohmann's exceptions. Raises c10::ValueError ("`subject` must ...") if the
/// text is nested deeper than any file of this library, because printing such a value would
/// overflow the stack.
inline nlohmann::ordered_json parse_json(const std::string& text, const char* subject) {
  static constexpr int kDeepest = 16;
  const auto keep = [&](int depth, nlohmann::ordered_json::parse_event_t, nlohmann::ordered_json&) {
    TORCH_CHECK_VALUE(depth <= kDeepest, subject, " must be nested at most ", kDeepest, " deep");
    return true;
  };
  return nlohmann::ordered_json::parse(text, keep);
}

}  // namespace retnet::io
