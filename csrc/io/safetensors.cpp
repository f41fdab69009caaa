// SPDX-License-Identifier: Apache-2.0
#include "io/safetensors.h"

#include <ATen/ops/empty.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>

#include "io/files.h"
#include "io/json.h"

namespace retnet::io {

namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kLongestHeader = 100'000'000;  // the limit of the library of the format
constexpr std::array<std::pair<const char*, at::ScalarType>, 6> kDtypes = {{{"F64", at::kDouble},
                                                                            {"F32", at::kFloat},
                                                                            {"F16", at::kHalf},
                                                                            {"BF16", at::kBFloat16},
                                                                            {"I64", at::kLong},
                                                                            {"I32", at::kInt}}};

constexpr const char* kSupported = "F64, F32, F16, BF16, I64 or I32";

/// Returns the value. Raises c10::ValueError, which says what the entry must have, if it is no
/// size.
uint64_t size_of(const Json& value, const std::string& name, const char* what) {
  TORCH_CHECK_VALUE(
      value.is_number_unsigned() && value.get<uint64_t>() <= std::numeric_limits<int64_t>::max(),
      name, " must have ", what, " >= 0, got ", value.dump());
  return value.get<uint64_t>();
}

const Json& member(const Json& object, const std::string& name, const char* key, size_t length) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  TORCH_CHECK_VALUE(object.is_object() && found != object.end() &&
                        (length == 0 || found->is_array()) && (length != 2 || found->size() == 2),
                    name, " must have dtype, shape and two data_offsets, got ", object.dump());
  return *found;
}

/// Reads and checks an entry, except the offset at which its data begins.
SafetensorsEntry entry_of(const std::string& name, const Json& json) {
  const auto& dtype = member(json, name, "dtype", 0);
  TORCH_CHECK_VALUE(dtype.is_string(), name, " must have a name as its dtype, got ", dtype.dump());
  SafetensorsEntry entry{name, dtype.get<std::string>(), at::ScalarType::Undefined, {}, 0, 0};
  const auto known = std::find_if(kDtypes.begin(), kDtypes.end(),
                                  [&](const auto& pair) { return entry.dtype_name == pair.first; });
  const bool is_known = known != kDtypes.end();
  if (is_known) entry.dtype = known->second;

  uint64_t bytes = is_known ? c10::elementSize(entry.dtype) : 0;
  for (const auto& value : member(json, name, "shape", 1)) {
    const auto size = size_of(value, name, "sizes");
    TORCH_CHECK_VALUE(!__builtin_mul_overflow(bytes, size, &bytes), name,
                      " must have a shape that fits in memory, got ", json["shape"].dump());
    entry.shape.push_back(static_cast<int64_t>(size));
  }
  const auto& offsets = member(json, name, "data_offsets", 2);
  const auto begin = size_of(offsets[0], name, "offsets");
  const auto end = size_of(offsets[1], name, "offsets");
  if (!is_known && begin <= end) bytes = end - begin;
  TORCH_CHECK_VALUE(begin <= end && end - begin == bytes, name, " must have ", bytes,
                    " bytes of data, got data_offsets ", offsets.dump());
  entry.offset = begin;
  entry.size = bytes;
  return entry;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(std::make_unique<InputFile>(path)) {
  try {
    TORCH_CHECK_VALUE(file_->size() >= kLengthBytes, "it has ", file_->size(),
                      " bytes, fewer than 8");
    std::array<unsigned char, kLengthBytes> bytes;
    file_->read(0, bytes.size(), bytes.data());
    uint64_t length = 0;
    for (size_t i = bytes.size(); i-- > 0;) length = length << 8 | bytes[i];
    TORCH_CHECK_VALUE(length <= std::min(kLongestHeader, file_->size() - kLengthBytes),
                      "its header must fit in the file of ", file_->size(),
                      " bytes and have at most ", kLongestHeader, " bytes, got a length of ",
                      length);
    std::string header(length, '\0');
    file_->read(kLengthBytes, length, header.data());
    parse(header, kLengthBytes + length);
  } catch (const c10::ValueError& error) {
    TORCH_CHECK_VALUE(false, path.string(),
                      ": must be a whole safetensors file: ", error.what_without_backtrace());
  } catch (const Json::exception& error) {
    TORCH_CHECK_VALUE(
        false, path.string(),
        ": must be a whole safetensors file: its header must be JSON: ", error.what());
  }
}

SafetensorsFile::~SafetensorsFile() = default;

void SafetensorsFile::parse(const std::string& header, uint64_t data) {
  const auto json = parse_json(header, "its header");
  TORCH_CHECK_VALUE(json.is_object(), "its header must be an object, got ", json.type_name());
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      metadata_ = value.get<std::map<std::string, std::string>>();
    } else {
      entries_.push_back(entry_of(name, value));
    }
  }
  // Empty tensors come before the tensor that begins at the same offset.
  std::sort(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) {
    return std::pair(a.offset, a.size) < std::pair(b.offset, b.size);
  });
  uint64_t end = 0;
  for (auto& entry : entries_) {
    TORCH_CHECK_VALUE(entry.offset == end, entry.name, " must begin at byte ", end,
                      " of the data, where the tensor before it ends, got ", entry.offset);
    end += entry.size;
    entry.offset += data;
  }
  TORCH_CHECK_VALUE(end == file_->size() - data, "it must have ", end, " bytes of data, got ",
                    file_->size() - data);
}

const std::filesystem::path& SafetensorsFile::path() const { return file_->path(); }

const SafetensorsEntry* SafetensorsFile::find(const std::string& name) const {
  const auto found = std::find_if(entries_.begin(), entries_.end(),
                                  [&](const auto& entry) { return entry.name == name; });
  return found == entries_.end() ? nullptr : &*found;
}

at::Tensor SafetensorsFile::read(const SafetensorsEntry& entry) const {
  TORCH_CHECK_VALUE(entry.dtype != at::ScalarType::Undefined, path().string(), ": ", entry.name,
                    " must have dtype ", kSupported, ", got ", entry.dtype_name);
  const auto tensor = at::empty(entry.shape, at::TensorOptions(entry.dtype));
  file_->read(entry.offset, entry.size, tensor.mutable_data_ptr());
  return tensor;
}

void SafetensorsFile::read_into(const SafetensorsEntry& entry, const at::Tensor& target) const {
  TORCH_CHECK_VALUE(target.sizes() == entry.shape, path().string(), ": ", entry.name, " has shape ",
                    c10::IntArrayRef(entry.shape), ", but the tensor to read it into has shape ",
                    target.sizes());
  if (target.device().is_cpu() && target.is_contiguous() && target.scalar_type() == entry.dtype) {
    file_->read(entry.offset, entry.size, target.mutable_data_ptr());
    return;
  }
  const c10::NoGradGuard no_grad;
  target.copy_(read(entry));
}

void write_safetensors(const std::filesystem::path& path,
                       std::vector<std::pair<std::string, at::Tensor>> tensors,
                       const std::map<std::string, std::string>& metadata) {
  // The widest items come first, so that every tensor begins at a multiple of its item size.
  std::stable_sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return a.second.element_size() > b.second.element_size();
  });
  Json json;
  json["__metadata__"] = metadata;
  json["__metadata__"]["format"] = "pt";
  uint64_t end = 0;
  for (const auto& [name, tensor] : tensors) {
    const auto known = std::find_if(kDtypes.begin(), kDtypes.end(), [&](const auto& pair) {
      return tensor.scalar_type() == pair.second;
    });
    TORCH_CHECK_VALUE(known != kDtypes.end(), path.string(), ": ", name, " must have dtype ",
                      kSupported, ", got ", c10::getDtypeNames(tensor.scalar_type()).first);
    const uint64_t begin = end;
    end += tensor.nbytes();
    json[name] = {
        {"dtype", known->first}, {"shape", tensor.sizes().vec()}, {"data_offsets", {begin, end}}};
  }
  auto header = json.dump();
  header.resize((header.size() + kLengthBytes - 1) / kLengthBytes * kLengthBytes, ' ');
  std::array<unsigned char, kLengthBytes> length;
  for (size_t i = 0; i < length.size(); ++i) length[i] = header.size() >> (8 * i) & 0xff;

  replace_file(path, [&](const Write& write) {
    write(length.data(), length.size());
    write(header.data(), header.size());
    for (const auto& [name, tensor] : tensors) {
      const auto whole = tensor.detach().cpu().contiguous();
      write(whole.const_data_ptr(), whole.nbytes());
    }
  });
}

}  // namespace retnet::io
