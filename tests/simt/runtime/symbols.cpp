// SPDX-License-Identifier: Apache-2.0
#include "simt/runtime/symbols.h"

#include <elf.h>
#include <link.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <map>
#include <mutex>
#include <vector>

namespace retnet::simt {
namespace {

// The program or shared library that holds this code, and with it the kernels.
struct Image {
  std::string file;
  uintptr_t load_bias = 0;  // 0 in a program that is not position-independent
  uintptr_t low = UINTPTR_MAX;
  uintptr_t high = 0;
};

const Image& image() {
  static const Image found = [] {
    Image result;
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* data) {
          Image candidate;
          candidate.file = info->dlpi_name;
          candidate.load_bias = info->dlpi_addr;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const auto& header = info->dlpi_phdr[i];
            if (header.p_type != PT_LOAD) continue;
            const uintptr_t low = info->dlpi_addr + header.p_vaddr;
            candidate.low = std::min(candidate.low, low);
            candidate.high = std::max(candidate.high, low + header.p_memsz);
          }
          const auto here = reinterpret_cast<uintptr_t>(&in_image);
          if (here < candidate.low || here >= candidate.high) return 0;
          *static_cast<Image*>(data) = candidate;
          return 1;
        },
        &result);
    if (result.file.empty()) result.file = "/proc/" + std::to_string(getpid()) + "/exe";
    return result;
  }();
  return found;
}

// The innermost frame first.
std::vector<std::string> frames_from_addr2line(Pc pc) {
  // One byte back: a return address may belong to the next statement.
  const uintptr_t address = image().low + pc - 1 - image().load_bias;
  char hexadecimal[32];
  std::snprintf(hexadecimal, sizeof(hexadecimal), "0x%" PRIxPTR, address);
  const std::string command =
      "addr2line -i -e '" + image().file + "' " + hexadecimal + " 2>/dev/null";
  std::vector<std::string> frames;
  FILE* pipe = popen(command.c_str(), "r");
  char line[1024];
  while (pipe != nullptr && std::fgets(line, sizeof(line), pipe) != nullptr) {
    std::string frame = line;
    frame.resize(frame.find_first_of("\n"));
    if (const size_t note = frame.find(" ("); note != std::string::npos) frame.resize(note);
    frames.push_back(frame);
  }
  if (pipe != nullptr) pclose(pipe);
  return frames;
}

const std::vector<std::string>& frames(Pc pc) {
  static std::mutex mutex;
  static std::map<Pc, std::vector<std::string>> known;
  const std::lock_guard lock(mutex);
  const auto [entry, is_new] = known.try_emplace(pc);
  if (is_new) entry->second = frames_from_addr2line(pc);
  return entry->second;
}

}  // namespace

Pc to_pc(const void* return_address) {
  return static_cast<Pc>(reinterpret_cast<uintptr_t>(return_address) - image().low);
}

std::string location(Pc pc) {
  if (pc == 0) return "";
  const auto& all = frames(pc);
  for (const std::string& frame : all) {
    if (frame.find("simt/emulate.h") == std::string::npos &&
        frame.find("kernels/cuda/prim/") == std::string::npos && frame.rfind("??", 0) != 0) {
      return frame.substr(frame.rfind('/') + 1);
    }
  }
  char text[32];
  std::snprintf(text, sizeof(text), "code+0x%x", pc);
  return text;
}

bool same_instruction(Pc a, Pc b) {
  return a == b || (frames(a) == frames(b) && !frames(a).empty());
}

bool in_image(uintptr_t address, size_t bytes) {
  return address >= image().low && address + bytes <= image().high;
}

}  // namespace retnet::simt
