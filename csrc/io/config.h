// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "../nn/options.h"
#include "../version.h"

namespace retnet::io {

/// Version of the JSON form of options. A reader refuses a newer version.
inline constexpr int64_t kFormatVersion = 1;

/// Returns the JSON text of config.json. It holds every field and format_version.
/// `RetNetConfig.from_json` of Python reads the same configuration from it, with the same numbers.
RETNET_API std::string to_json(const nn::RetNetOptions& options);

/// Reads the JSON text that `to_json`, here or in Python, wrote.
///
/// Raises c10::ValueError if the text is not a JSON object, if format_version is missing or newer,
/// if a field is unknown (the message suggests the nearest name), if a size is missing, or if a
/// value is out of its range.
RETNET_API nn::RetNetOptions options_from_json(const std::string& text);

}  // namespace retnet::io
