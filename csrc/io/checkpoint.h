// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <optional>

#include "../nn/causal_lm.h"
#include "../version.h"

namespace retnet::nn {

/// Writes a checkpoint, which `retnet.load` of Python reads too: config.json (`io::to_json`) and
/// model.safetensors, the parameters under their keys. The folder is made where there is none;
/// weights of the same options are replaced. A full disk or a kill at any moment leaves the old
/// checkpoint whole.
///
/// Raises c10::ValueError where the folder holds a checkpoint of other options, or other files of
/// these names, and std::system_error where a file could not be written; both name it.
RETNET_API void save(const std::filesystem::path& folder, const RetNetForCausalLM& model);

/// Reads what `save`, or `model.save` of Python, wrote. The weights are read one after the other
/// straight into the model.
///
///   device  of the model
///   dtype   of the weights; absent = that of embed_tokens.weight in the file
///
/// Raises std::system_error where a file cannot be read, and c10::ValueError, which names the file
/// and what is wrong, where it is corrupt, truncated, of something else or of a newer
/// format_version, or where names or shapes are not those of config.json.
RETNET_API RetNetForCausalLM load(const std::filesystem::path& folder,
                                  const torch::Device& device = torch::kCPU,
                                  std::optional<torch::Dtype> dtype = std::nullopt);

}  // namespace retnet::nn
