// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "../nn/options.h"
#include "../version.h"

namespace retnet::io {

/// Version of the JSON form of options. A reader refuses files of a newer version.
inline constexpr int64_t kFormatVersion = 1;

/// The JSON text of config.json: every field, and format_version. What `RetNetConfig.from_json` of
/// Python reads gives the same configuration, number by number.
RETNET_API std::string to_json(const nn::RetNetOptions& options);

/// Reads what `to_json`, here or in Python, wrote. Raises c10::ValueError when the text is no JSON
/// object, has no format_version or a newer one, unknown fields (the nearest name is suggested), or
/// lacks a size, and when a value is out of its range.
RETNET_API nn::RetNetOptions options_from_json(const std::string& text);

}  // namespace retnet::io
