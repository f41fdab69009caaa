// SPDX-License-Identifier: Apache-2.0
//
// Files of decoding states. These functions are not members of RetNetState, because RetNetState
// belongs to the library that does not use JSON.
#pragma once

#include <c10/core/Device.h>

#include <filesystem>

#include "../nn/state.h"
#include "../version.h"

namespace retnet::nn {

/// Writes a safetensors file with the tensors `retention` and `positions`, as `RetNetState.save` of
/// Python does. An existing file is replaced atomically. If an error occurs, it is not replaced.
///
/// Raises std::system_error, which names the file, if it could not be written.
RETNET_API void save(const std::filesystem::path& path, const RetNetState& state);

/// Reads a file that `save`, or `RetNetState.save` of Python, wrote. `device` is the device of the
/// state.
///
/// Raises std::system_error if the file cannot be read. Raises c10::ValueError, which names the
/// file, if it is corrupt, truncated, of another kind or of a newer format_version.
RETNET_API RetNetState load_state(const std::filesystem::path& path,
                                  const at::Device& device = at::kCPU);

}  // namespace retnet::nn
