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
  std::string dtype_name;  ///< the name in the file
  at::ScalarType dtype;    ///< Undefined if this library cannot read the dtype
  std::vector<int64_t> shape;
  uint64_t offset;  ///< the offset of its first byte in the file
  uint64_t size;    ///< the size in bytes
};

/// A safetensors file, open for reading (https://github.com/huggingface/safetensors). It holds the
/// length of the header (8 bytes, little-endian), the header in JSON, and the tensors without gaps.
/// A tensor is read on request, directly into its memory.
class RETNET_API SafetensorsFile {
 public:
  /// Reads the header and checks every number in it. Raises std::system_error if the file cannot be
  /// read. Raises c10::ValueError, which names the file, if it is not a safetensors file or is
  /// incomplete.
  explicit SafetensorsFile(const std::filesystem::path& path);
  ~SafetensorsFile();

  const std::filesystem::path& path() const;

  /// The tensors, in their order in the file.
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }

  /// Text that the writer added.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// Returns the tensor of that name, or null if there is none.
  const SafetensorsEntry* find(const std::string& name) const;

  /// Reads into a new tensor on the CPU. Raises c10::ValueError, which names the file and the
  /// tensor, if its dtype is not float64, float32, float16, bfloat16, int64 or int32.
  at::Tensor read(const SafetensorsEntry& entry) const;

  /// Reads into a tensor of the same shape, on any device and of any dtype. It allocates memory,
  /// for this one tensor, only if the device is not the CPU or the dtype is not that of the file.
  void read_into(const SafetensorsEntry& entry, const at::Tensor& target) const;

 private:
  void parse(const std::string& header, uint64_t data);

  std::unique_ptr<InputFile> file_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// Writes tensors of those dtypes from any device, one after the other, together with `metadata`.
/// An existing file is replaced atomically. If an error occurs, it is not replaced. Raises
/// std::system_error, which names the file, if it could not be written.
RETNET_API void write_safetensors(const std::filesystem::path& path,
                                  std::vector<std::pair<std::string, at::Tensor>> tensors,
                                  const std::map<std::string, std::string>& metadata = {});

}  // namespace retnet::io
