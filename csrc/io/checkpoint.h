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
/// straight into the model. Where older versions wrote `log_decay`, ln gamma itself, the
/// `log_decay_raw` that gives it is found.
///
///   device  of the model
///   dtype   of the weights; absent = that of embed_tokens.weight in the file
///
/// Raises std::system_error where a file cannot be read, and c10::ValueError, which names the file
/// and what is wrong, where it is corrupt, truncated, of something else or of a newer
/// format_version, where names or shapes are not those of config.json, where a weight is none of
/// float64, float32, float16 and bfloat16 (as in a quantised model), or where an old `log_decay` is
/// above 0 or NaN. Raises c10::ValueError too where `dtype` is none of those four.
RETNET_API RetNetForCausalLM load(const std::filesystem::path& folder,
                                  const torch::Device& device = torch::kCPU,
                                  std::optional<torch::Dtype> dtype = std::nullopt);

}  // namespace retnet::nn
