// SPDX-License-Identifier: Apache-2.0
//
// Files that are read completely or not at all, and that are never left half written. A system
// error raises std::system_error, whose message names the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace retnet::io {

/// A file open for reading.
class InputFile {
 public:
  explicit InputFile(std::filesystem::path path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  uint64_t size() const { return size_; }

  /// Reads the `count` bytes at `offset`, which must lie inside the file.
  void read(uint64_t offset, uint64_t count, void* bytes) const;

 private:
  std::filesystem::path path_;
  int descriptor_;
  uint64_t size_;
};

/// Returns the contents of a file.
std::string read_file(const std::filesystem::path& path);

/// Appends `count` bytes.
using Write = std::function<void(const void* bytes, uint64_t count)>;

/// Writes a file such that a full disk or a kill at any moment leaves the previous file intact.
/// `fill` writes to a file in the same folder, which is flushed to the disk and then renamed.
void replace_file(const std::filesystem::path& path, const std::function<void(const Write&)>& fill);

}  // namespace retnet::io
