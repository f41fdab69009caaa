// SPDX-License-Identifier: Apache-2.0
//
// Files of decoding states. No members of RetNetState, which belongs to the library that does
// without JSON.
#pragma once

#include <c10/core/Device.h>

#include <filesystem>

#include "../nn/state.h"
#include "../version.h"

namespace retnet::nn {

/// Writes a safetensors file with the tensors `retention` and `positions`, as `RetNetState.save` of
/// Python does. A file that stood there is replaced at once or, on an error, not at all.
///
/// Raises std::system_error, which names the file, where it could not be written.
RETNET_API void save(const std::filesystem::path& path, const RetNetState& state);

/// Reads what `save` or `RetNetState.save` of Python wrote; `device` is where the state lives.
///
/// Raises std::system_error where the file cannot be read, and c10::ValueError, which names it,
/// where it is corrupt, truncated, of something else or of a newer format_version.
RETNET_API RetNetState load_state(const std::filesystem::path& path,
                                  const at::Device& device = at::kCPU);

}  // namespace retnet::nn
