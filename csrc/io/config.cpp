// SPDX-License-Identifier: Apache-2.0
#include "io/config.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <type_traits>
#include <variant>
#include <vector>

#include "io/hint.h"
#include "io/json.h"
#include "nn/option_fields.h"

namespace retnet::io {

namespace {

using Json = nlohmann::ordered_json;

// Each take() stores a JSON value in a field of its type. It returns null, or what the value must
// be if it has another type. `validated` checks ranges.

const char* take(const Json& value, int64_t& field) {
  const bool fits =
      value.is_number_integer() &&
      (!value.is_number_unsigned() || value.get<uint64_t>() <= std::numeric_limits<int64_t>::max());
  if (fits) field = value.get<int64_t>();
  return fits ? nullptr : "a positive integer";
}

const char* take(const Json& value, bool& field) {
  if (value.is_boolean()) field = value.get<bool>();
  return value.is_boolean() ? nullptr : "true or false";
}

const char* take(const Json& value, double& field) {
  if (value.is_number()) field = value.get<double>();
  return value.is_number() ? nullptr : "a finite number > 0";
}

const char* take(const Json& value, std::string& field) {
  if (value.is_string()) field = value.get<std::string>();
  return value.is_string() ? nullptr : "a name";
}

const char* take(const Json& value, nn::NameOrList& field) {
  const auto is_number = [](const Json& item) { return item.is_number(); };
  if (value.is_string()) {
    field = value.get<std::string>();
  } else if (value.is_array() && std::all_of(value.begin(), value.end(), is_number)) {
    field = value.get<std::vector<double>>();
  } else {
    return "a name or a list of numbers";
  }
  return nullptr;
}

void require(bool ok, const std::string& field, const std::string& requirement, const Json& value) {
  TORCH_CHECK_VALUE(ok, "RetNetOptions: ", field, " must be ", requirement, ", got ", value.dump());
}

Json parse(const std::string& text) {
  try {
    return parse_json(text, "RetNetOptions: JSON");
  } catch (const Json::exception& error) {
    C10_THROW_ERROR(ValueError,
                    std::string("RetNetOptions: text must be JSON, got ") + error.what());
  }
}

}  // namespace

std::string to_json(const nn::RetNetOptions& options) {
  Json json = {{"format_version", kFormatVersion}};
  nn::for_each_field(options, [&]<class T>(const char* name, const T& field) {
    if constexpr (std::is_same_v<T, nn::NameOrList>) {
      std::visit([&](const auto& value) { json[name] = value; }, field);
    } else {
      json[name] = field;
    }
  });
  return json.dump(2) + "\n";
}

nn::RetNetOptions options_from_json(const std::string& text) {
  auto json = parse(text);
  TORCH_CHECK_VALUE(json.is_object(), "RetNetOptions: JSON must be an object, got ",
                    json.type_name());
  const auto version = json.value("format_version", Json());
  int64_t number = 0;
  require(!take(version, number) && 1 <= number && number <= kFormatVersion, "format_version",
          "an integer in 1.." + std::to_string(kFormatVersion), version);
  json.erase("format_version");

  nn::RetNetOptions options;
  std::vector<std::string> names;
  std::string missing;
  nn::for_each_field(options, [&]<class T>(const char* name, T& field) {
    names.push_back(name);
    if (const auto found = json.find(name); found != json.end()) {
      const char* requirement = take(*found, field);
      require(!requirement, name, requirement ? requirement : "", *found);
    } else if (std::is_same_v<T, int64_t>) {  // sizes have no default
      missing += (missing.empty() ? "" : ", ") + std::string(name);
    }
  });
  for (const auto& [name, value] : json.items()) {
    TORCH_CHECK_VALUE(std::find(names.begin(), names.end(), name) != names.end(),
                      "RetNetOptions: JSON must hold known fields only, got '", name, "'",
                      hint(name, names));
  }
  TORCH_CHECK_VALUE(missing.empty(),
                    "RetNetOptions: JSON must hold every size, missing: ", missing);
  return options.validated();
}

}  // namespace retnet::io
