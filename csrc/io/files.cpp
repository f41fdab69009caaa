// SPDX-License-Identifier: Apache-2.0
#include "io/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

namespace retnet::io {

namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const fs::path& path, const std::string& what, int error = errno) {
  throw std::system_error(error, std::generic_category(), path.string() + ": " + what);
}

/// Returns the result of a system call. Repeats the call if a signal interrupts it.
template <class Call>
auto retried(const Call& call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

/// A file that is open for writing. The destructor removes it unless it was renamed.
class PartFile {
 public:
  explicit PartFile(fs::path path)
      : path_(std::move(path)), descriptor_(retried([&] {
          return ::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
        })) {
    if (descriptor_ < 0) fail(path_, "cannot be made");
  }
  ~PartFile() {
    ::close(descriptor_);
    ::unlink(path_.c_str());
  }

  void write(const void* bytes, uint64_t count) {
    const auto* next = static_cast<const char*>(bytes);
    while (count > 0) {
      const auto written = retried([&] { return ::write(descriptor_, next, count); });
      if (written < 0) fail(path_, "cannot be written");
      next += written;
      count -= static_cast<uint64_t>(written);
    }
  }

  void rename(const fs::path& target) {
    if (retried([&] { return ::fsync(descriptor_); }) < 0) fail(path_, "cannot be flushed");
    if (::rename(path_.c_str(), target.c_str()) < 0) fail(path_, "cannot be renamed");
  }

 private:
  fs::path path_;
  int descriptor_;
};

/// Flushes the names in a folder to the disk.
void flush_folder(const fs::path& folder) {
  const int descriptor =
      retried([&] { return ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); });
  const bool ok = descriptor >= 0 && retried([&] { return ::fsync(descriptor); }) == 0;
  const int error = errno;
  if (descriptor >= 0) ::close(descriptor);
  if (!ok) fail(folder, "cannot be flushed", error);
}

}  // namespace

InputFile::InputFile(fs::path path)
    : path_(std::move(path)),
      descriptor_(retried([&] { return ::open(path_.c_str(), O_RDONLY | O_CLOEXEC); })) {
  if (descriptor_ < 0) fail(path_, "cannot be opened");
  struct stat status;
  int error = ::fstat(descriptor_, &status) < 0 ? errno : 0;
  if (error == 0 && S_ISDIR(status.st_mode)) error = EISDIR;
  if (error != 0) {
    ::close(descriptor_);
    fail(path_, "cannot be read", error);
  }
  size_ = static_cast<uint64_t>(status.st_size);
}

InputFile::~InputFile() { ::close(descriptor_); }

void InputFile::read(uint64_t offset, uint64_t count, void* bytes) const {
  auto* next = static_cast<char*>(bytes);
  while (count > 0) {
    const auto got =
        retried([&] { return ::pread(descriptor_, next, count, static_cast<off_t>(offset)); });
    if (got < 0) fail(path_, "cannot be read");
    if (got == 0) fail(path_, "became shorter while it was read", EIO);
    next += got;
    offset += static_cast<uint64_t>(got);
    count -= static_cast<uint64_t>(got);
  }
}

std::string read_file(const fs::path& path) {
  const InputFile file(path);
  std::string text(file.size(), '\0');
  file.read(0, file.size(), text.data());
  return text;
}

void replace_file(const fs::path& path, const std::function<void(const Write&)>& fill) {
  auto part_path = path;
  part_path += ".part";
  try {
    PartFile part(part_path);
    fill([&](const void* bytes, uint64_t count) { part.write(bytes, count); });
    part.rename(path);
  } catch (const std::system_error& error) {
    fail(path, "could not be written; any old file is unchanged", error.code().value());
  }
  flush_folder(path.has_parent_path() ? path.parent_path() : ".");
}

}  // namespace retnet::io
