// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/types.h>

#include <filesystem>
#include <optional>

#include "../nn/causal_lm.h"
#include "../version.h"

namespace retnet::nn {

/// Writes a checkpoint, which `retnet.load` of Python reads too. It consists of config.json
/// (`io::to_json`) and model.safetensors, which holds the parameters under their keys. The folder
/// is created if there is none. Weights of the same options are replaced. A full disk or a kill at
/// any moment leaves the old checkpoint intact.
///
/// Raises c10::ValueError if the folder holds a checkpoint of other options, or other files of
/// these names. Raises std::system_error if a file could not be written. Both messages name the
/// folder or file.
RETNET_API void save(const std::filesystem::path& folder, const RetNetForCausalLM& model);

/// Reads a checkpoint that `save`, or `model.save` of Python, wrote. The weights are read one after
/// the other directly into the model. Older versions wrote `log_decay`, which is ln gamma itself.
/// It is converted to `log_decay_raw`.
///
///   device  device of the model
///   dtype   dtype of the weights; absent = that of embed_tokens.weight in the file
///
/// Raises std::system_error if a file cannot be read. Raises c10::ValueError, which names the file
/// and the reason, if
///
/// - a file is corrupt, truncated, of another kind or of a newer format_version,
/// - names or shapes are not those of config.json,
/// - a weight is not float64, float32, float16 or bfloat16, as in a quantised model,
/// - an old `log_decay` is above 0 or NaN.
///
/// Also raises c10::ValueError if `dtype` is none of those four.
RETNET_API RetNetForCausalLM load(const std::filesystem::path& folder,
                                  const torch::Device& device = torch::kCPU,
                                  std::optional<torch::Dtype> dtype = std::nullopt);

}  // namespace retnet::nn
