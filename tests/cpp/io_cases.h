// SPDX-License-Identifier: Apache-2.0
//
// Folders, files and disks for the tests of retnet::io.
#pragma once

#include <dirent.h>
#include <retnet/io/safetensors.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <system_error>
#include <type_traits>
#include <vector>

#include "catch.h"
#include "nn_cases.h"

namespace fs = std::filesystem;
using retnet::io::SafetensorsFile;
using retnet::io::write_safetensors;

/// A folder that is removed at the end of a test. The walks of std::filesystem over folders crash
/// with torch's wheels, which export a part of another libstdc++.
class Folder {
 public:
  Folder() {
    std::string name = fs::temp_directory_path() / "retnet_io_XXXXXX";
    path = mkdtemp(name.data());
  }
  ~Folder() {
    if (std::system(("rm -r " + path.string()).c_str()) != 0) std::abort();
  }
  fs::path operator/(const char* name) const { return path / name; }

  fs::path path;
};

/// While an object lives, no file may grow beyond `bytes`: write(2) fails as on a full disk.
class FullDisk {
 public:
  explicit FullDisk(rlim_t bytes) {
    std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit = {bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FullDisk() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_;
};

inline std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

inline void write(const fs::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string replaced(std::string text, const std::string& from, const std::string& to) {
  REQUIRE(text.find(from) != std::string::npos);
  return text.replace(text.find(from), from.size(), to);
}

/// Makes a safetensors file with that header and so many bytes of data.
inline std::string file_of(const std::string& header, size_t data) {
  std::string length(8, '\0');
  for (size_t i = 0; i < 8; ++i) length[i] = static_cast<char>(header.size() >> (8 * i));
  return length + header + std::string(data, 'x');
}

/// Returns the error message of a call that must fail.
template <class Error>
std::string message(const std::function<void()>& call) {
  try {
    call();
  } catch (const c10::ValueError& error) {
    if constexpr (std::is_same_v<Error, c10::ValueError>) return error.what_without_backtrace();
  } catch (const std::system_error& error) {
    if constexpr (std::is_same_v<Error, std::system_error>) return error.what();
  }
  return "nothing of that kind raised";
}

inline std::vector<std::string> names(const fs::path& folder) {
  std::vector<std::string> found;
  DIR* const items = opendir(folder.c_str());
  REQUIRE(items);
  while (const dirent* item = readdir(items)) {
    if (item->d_name[0] != '.') found.emplace_back(item->d_name);
  }
  closedir(items);
  std::sort(found.begin(), found.end());
  return found;
}

inline bool same_parameters(const RetNetForCausalLM& a, const RetNetForCausalLM& b) {
  const auto others = b->named_parameters();
  const auto parameters = a->named_parameters();
  return parameters.keys() == others.keys() &&
         std::all_of(parameters.begin(), parameters.end(), [&](const auto& item) {
           return item.value().scalar_type() == others[item.key()].scalar_type() &&
                  torch::equal(item.value(), others[item.key()]);
         });
}
