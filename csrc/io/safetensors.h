// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../version.h"

namespace retnet::io {

class InputFile;

/// A tensor of a safetensors file.
struct SafetensorsEntry {
  std::string name;
  std::string dtype_name;  ///< as the file gives it
  at::ScalarType dtype;    ///< Undefined for a dtype that cannot be read here
  std::vector<int64_t> shape;
  uint64_t offset;  ///< of its first byte in the file
  uint64_t size;    ///< in bytes
};

/// A safetensors file, open for reading: the length of the header (8 bytes, little-endian), the
/// header in JSON, then the tensors without gaps (https://github.com/huggingface/safetensors).
/// Tensors are read when asked for, straight into their memory.
class RETNET_API SafetensorsFile {
 public:
  /// Reads the header and checks every number in it. Raises std::system_error where the file cannot
  /// be read, and c10::ValueError, which names the file, where it is none or is not whole.
  explicit SafetensorsFile(const std::filesystem::path& path);
  ~SafetensorsFile();

  const std::filesystem::path& path() const;

  /// The tensors, in the order in which they lie in the file.
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }

  /// Text that the writer added.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// The tensor of that name; null where there is none.
  const SafetensorsEntry* find(const std::string& name) const;

  /// A new tensor on the CPU. Raises c10::ValueError, which names the file and the tensor, where its
  /// dtype is none of float64, float32, float16, bfloat16, int64 and int32.
  at::Tensor read(const SafetensorsEntry& entry) const;

  /// Reads into a tensor of the same shape, of any device and dtype. Only where those are not the
  /// CPU and the file's own does it take memory, for this one tensor.
  void read_into(const SafetensorsEntry& entry, const at::Tensor& target) const;

 private:
  void parse(const std::string& header, uint64_t data);

  std::unique_ptr<InputFile> file_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// Writes tensors of those dtypes from any device, one after the other, and `metadata` beside them.
/// A file that stood there is replaced at once or, on an error, not at all. Raises
/// std::system_error, which names the file, where it could not be written.
RETNET_API void write_safetensors(const std::filesystem::path& path,
                                  std::vector<std::pair<std::string, at::Tensor>> tensors,
                                  const std::map<std::string, std::string>& metadata = {});

}  // namespace retnet::io
