// SPDX-License-Identifier: Apache-2.0
#include "io/state.h"

#include <c10/util/Exception.h>

#include <string>

#include "io/safetensors.h"

namespace retnet::nn {

namespace {

constexpr const char* kFormatVersion = "1";

std::string kind(const io::SafetensorsEntry& entry) {
  const bool is_known = entry.dtype != at::ScalarType::Undefined;
  return c10::str(c10::IntArrayRef(entry.shape), " ",
                  is_known ? c10::getDtypeNames(entry.dtype).first : entry.dtype_name);
}

}  // namespace

void save(const std::filesystem::path& path, const RetNetState& state) {
  io::write_safetensors(path, {{"retention", state.retention}, {"positions", state.positions}},
                        {{"format_version", kFormatVersion}});
}

RetNetState load_state(const std::filesystem::path& path, const at::Device& device) {
  const io::SafetensorsFile file(path);
  const auto version = file.metadata().find("format_version");
  TORCH_CHECK_VALUE(version == file.metadata().end() || version->second == kFormatVersion,
                    path.string(), ": format_version must be <= ", kFormatVersion, ", got ",
                    version->second);
  const auto* retention = file.find("retention");
  const auto* positions = file.find("positions");
  std::string names;
  for (const auto& entry : file.entries()) {
    names += (names.empty() ? "'" : ", '") + entry.name + "'";
  }
  TORCH_CHECK_VALUE(retention && positions && file.entries().size() == 2, path.string(),
                    ": must hold the tensors retention and positions, got [", names, "]");
  TORCH_CHECK_VALUE(retention->shape.size() == 5 &&
                        (retention->dtype == at::kFloat || retention->dtype == at::kDouble) &&
                        positions->shape == std::vector<int64_t>{retention->shape[1]} &&
                        positions->dtype == at::kLong,
                    path.string(),
                    ": must hold retention [L, B, H, K, V] float32 or float64 and positions [B] "
                    "int64, got ",
                    kind(*retention), " and ", kind(*positions));
  return {file.read(*retention).to(device), file.read(*positions).to(device)};
}

}  // namespace retnet::nn
