// SPDX-License-Identifier: Apache-2.0
//
// Files of tensors and options: what is read back, and what is refused.
#include <retnet/io/config.h>
#include <retnet/io/safetensors.h>

#include <algorithm>

#include "catch.h"
#include "io_cases.h"

namespace {

const std::vector<at::ScalarType> kDtypes = {torch::kFloat64,  torch::kFloat32, torch::kFloat16,
                                             torch::kBFloat16, torch::kInt64,   torch::kInt32};

}  // namespace

// Tensors
// -------------------------------------------------------------------------------------------------

TEST_CASE("safetensors: what is written comes back") {
  const Folder folder;
  std::vector<std::pair<std::string, torch::Tensor>> tensors;
  for (const auto dtype : kDtypes) {
    const std::string name(c10::getDtypeNames(dtype).first);
    tensors.emplace_back(name, torch::randint(-99, 99, {3, 5}).to(dtype));
    tensors.emplace_back(name + " turned", torch::randint(-99, 99, {3, 5}).to(dtype).t());
  }
  tensors.emplace_back("\"quoted\" \xc3\xa9", torch::tensor(2.5));
  tensors.emplace_back("empty", torch::empty({4, 0}));
  write_safetensors(folder / "file", tensors, {{"step", "7"}});

  const SafetensorsFile file(folder / "file");
  CHECK(file.metadata() == std::map<std::string, std::string>{{"format", "pt"}, {"step", "7"}});
  REQUIRE(file.entries().size() == tensors.size());
  for (const auto& [name, tensor] : tensors) {
    CAPTURE(name);
    const auto* entry = file.find(name);
    REQUIRE(entry);
    CHECK(entry->offset % tensor.element_size() == 0);
    CHECK(torch::equal(file.read(*entry), tensor));
    CHECK(file.read(*entry).scalar_type() == tensor.scalar_type());
    for (const auto dtype : {tensor.scalar_type(), torch::kFloat64}) {
      const auto target = torch::full_like(tensor, 3, torch::dtype(dtype));
      file.read_into(*entry, target);
      CHECK(torch::equal(target, tensor.to(dtype)));
    }
  }
  CHECK(!file.find("step"));
  CHECK(std::is_sorted(file.entries().begin(), file.entries().end(),
                       [](const auto& a, const auto& b) { return a.offset < b.offset; }));
  CHECK(message<c10::ValueError>([&] { file.read_into(*file.find("empty"), torch::empty({4})); }) ==
        (folder / "file").string() +
            ": empty has shape [4, 0], but the tensor to read it into has shape [4]");
  CHECK_THROWS_WITH(
      write_safetensors(folder / "x", {{"a", torch::ones(1, torch::kBool)}}),
      ContainsSubstring("a must have dtype F64, F32, F16, BF16, I64 or I32, got bool"));
  CHECK(names(folder.path) == std::vector<std::string>{"file"});
}

TEST_CASE("safetensors: a bad file is refused, and named") {
  const Folder folder;
  const auto tensor = [](const std::string& dtype, const std::string& shape,
                         const std::string& offsets) {
    return R"("a":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets +
           "}";
  };
  const auto a = tensor("F32", "[2]", "[0,8]");
  const std::string b = R"(,"b":{"dtype":"F32","shape":[1],"data_offsets":)";
  const std::string whole = file_of("{" + a + "}", 8);
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"", "it has 0 bytes, fewer than 8"},
      {whole.substr(0, 7), "it has 7 bytes, fewer than 8"},
      {whole.substr(0, 30), "its header must fit in the file of 30 bytes"},
      {whole.substr(0, whole.size() - 1), "it must have 8 bytes of data, got 7"},
      {whole + "x", "it must have 8 bytes of data, got 9"},
      {std::string(64, '\xff'), "got a length of 18446744073709551615"},
      {file_of("nonsense", 0), "its header must be JSON"},
      {file_of("{\"a\":" + std::string(200'000, '[') + std::string(200'000, ']') + "}", 0),
       "its header must be nested at most 16 deep"},
      {file_of("{\"\xff\":1}", 0), "its header must be JSON"},
      {file_of("[1]", 0), "its header must be an object, got array"},
      {file_of("", 0), "its header must be JSON"},
      {file_of(R"({"__metadata__":{"a":1}})", 0), "its header must be JSON"},
      {file_of(R"({"a":1})", 0), "a must have dtype, shape and two data_offsets, got 1"},
      {file_of(R"({"a":{"dtype":"F32","shape":[1]}})", 4), "a must have dtype, shape and two"},
      {file_of("{" + tensor("F32", "2", "[0,8]") + "}", 8), "a must have dtype, shape and two"},
      {file_of("{" + tensor("F32", "[2]", "[0,8,8]") + "}", 8), "a must have dtype, shape and two"},
      {file_of(R"({"a":{"dtype":8,"shape":[8],"data_offsets":[0,8]}})", 8),
       "a must have a name as its dtype, got 8"},
      {file_of("{" + tensor("F8_E4M3", "[8]", "[8,0]") + "}", 8), "a must have 0 bytes of data"},
      {file_of("{" + tensor("F8_E4M3", "[8]", "[0,9]") + "}", 8), "it must have 9 bytes of data"},
      {file_of("{" + tensor("F32", "[-2]", "[0,8]") + "}", 8), "a must have sizes >= 0, got -2"},
      {file_of("{" + tensor("F32", "[2.0]", "[0,8]") + "}", 8), "a must have sizes >= 0, got 2.0"},
      {file_of("{" + tensor("F32", "[4294967296,4294967296]", "[0,0]") + "}", 0),
       "a must have a shape that fits in memory, got [4294967296,4294967296]"},
      {file_of("{" + tensor("F32", "[18446744073709551615]", "[0,8]") + "}", 8),
       "a must have sizes >= 0, got 18446744073709551615"},
      {file_of("{" + tensor("F32", "[2]", "[-8,0]") + "}", 8), "a must have offsets >= 0, got -8"},
      {file_of("{" + tensor("F32", "[2]", "[8,0]") + "}", 8),
       "a must have 8 bytes of data, got data_offsets [8,0]"},
      {file_of("{" + tensor("F32", "[3]", "[0,8]") + "}", 8), "a must have 12 bytes of data"},
      {file_of("{" + a + b + "[4,8]}}", 8), "b must begin at byte 8 of the data"},
      {file_of("{" + a + b + "[12,16]}}", 16), "b must begin at byte 8 of the data"},
      {file_of("{" + tensor("F32", "[2]", "[4,12]") + "}", 12), "a must begin at byte 0 of the"},
  };
  write(folder / "file", whole);
  CHECK(SafetensorsFile(folder / "file").entries().size() == 1);
  write(folder / "file", file_of("{" + tensor("F8_E4M3", "[8]", "[0,8]") + "}", 8));
  const SafetensorsFile other(folder / "file");  // opened, so that its reader can say what is wrong
  CHECK(other.entries()[0].dtype_name == "F8_E4M3");
  CHECK(message<c10::ValueError>([&] { other.read(other.entries()[0]); }) ==
        (folder / "file").string() +
            ": a must have dtype F64, F32, F16, BF16, I64 or I32, got F8_E4M3");
  for (const auto& [bytes, what] : bad) {
    CAPTURE(bytes);
    write(folder / "file", bytes);
    const auto said = message<c10::ValueError>([&] { SafetensorsFile(folder / "file"); });
    CHECK_THAT(said, ContainsSubstring((folder / "file").string() +
                                       ": must be a whole safetensors file: "));
    CHECK_THAT(said, ContainsSubstring(what));
    CHECK(said.find('\n') == std::string::npos);
  }
  CHECK(message<std::system_error>([&] { SafetensorsFile(folder / "none"); }) ==
        (folder / "none").string() + ": cannot be opened: No such file or directory");
  CHECK(message<std::system_error>([&] { SafetensorsFile(folder.path); }) ==
        folder.path.string() + ": cannot be read: Is a directory");
}

TEST_CASE("safetensors: a full disk leaves the old file") {
  const Folder folder;
  write_safetensors(folder / "file", {{"a", torch::ones({1000})}});
  const auto before = read(folder / "file");
  const auto said = message<std::system_error>([&] {
    const FullDisk full(2000);
    write_safetensors(folder / "file", {{"a", torch::zeros({1000})}});
  });
  CHECK(said == (folder / "file").string() +
                    ": could not be written; any old file is unchanged: File too large");
  CHECK(read(folder / "file") == before);
  CHECK(names(folder.path) == std::vector<std::string>{"file"});
  CHECK(message<std::system_error>([&] {
          write_safetensors(folder / "no/file", {{"a", torch::zeros({1})}});
        }) == (folder / "no/file").string() +
                  ": could not be written; any old file is unchanged: No such file or directory");
}

// Options
// -------------------------------------------------------------------------------------------------

TEST_CASE("config: options come back from JSON, number by number") {
  for (const auto& variant : variants()) {
    CAPTURE(variant.name);
    const auto text = retnet::io::to_json(variant.options());
    CHECK(retnet::io::to_json(retnet::io::options_from_json(text)) == text);
  }
  const double third = 1.0 / 3, tiny = 4.9406564584124654e-324;
  const auto text = retnet::io::to_json(small_options().norm_eps(third).embed_scale(tiny).decay(
      std::vector<double>{-third, -0.1, -0.0}));
  const auto options = retnet::io::options_from_json(text);
  CHECK(options.norm_eps() == third);
  CHECK(options.embed_scale() == tiny);
  CHECK(std::get<std::vector<double>>(options.decay()) == std::vector<double>{-third, -0.1, -0.0});
  // Switches have defaults, and a whole number is a number.
  const auto few = retnet::io::options_from_json(
      R"({"format_version": 1, "vocab_size": 13, "embed_dim": 12, "num_layers": 2, "num_heads": 3,
          "key_dim": 4, "value_dim": 6, "ffn_dim": 10, "residual_scale": 1, "norm": "rms"})");
  CHECK(retnet::io::to_json(few) == retnet::io::to_json(small_options().norm("rms")));
  // Editors on Windows write a byte-order mark.
  CHECK(retnet::io::to_json(retnet::io::options_from_json("\xef\xbb\xbf" + text)) == text);
}

TEST_CASE("config: bad JSON is refused") {
  const auto good = retnet::io::to_json(small_options());
  const auto with = [&](const std::string& from, const std::string& to) {
    return replaced(good, from, to);
  };
  const std::vector<std::pair<std::string, std::string>> bad = {
      {"", "text must be JSON, got "},
      {std::string(200'000, '['), "JSON must be nested at most 16 deep"},
      {good.substr(0, 40), "text must be JSON, got "},
      {"{\"\xff\": 1}", "text must be JSON, got "},
      {with("1e-06", "1e999"), "text must be JSON, got "},
      {"[1]", "JSON must be an object, got array"},
      {with("\"format_version\": 1", "\"format_version\": 2"),
       "format_version must be an integer in 1..1, got 2"},
      {with("\"format_version\": 1", "\"format_version\": 1.0"),
       "format_version must be an integer in 1..1, got 1.0"},
      {with("\"format_version\": 1,", ""), "format_version must be an integer in 1..1, got null"},
      {with("\"norm\"", "\"nrom\""),
       "JSON must hold known fields only, got 'nrom' (did you mean 'norm'?)"},
      {with("\"norm\"", "\"embed_dims\""),
       "JSON must hold known fields only, got 'embed_dims' (did you mean 'embed_dim'?)"},
      {with("\"norm\"", "\"xyz\""), "JSON must hold known fields only, got 'xyz'"},
      {with("\"key_dim\": 4,", ""), "JSON must hold every size, missing: key_dim"},
      {with("\"key_dim\": 4", "\"key_dim\": 5"), "key_dim must be even, got 5"},
      {with("\"key_dim\": 4", "\"key_dim\": 4.0"), "key_dim must be a positive integer, got 4.0"},
      {with("\"key_dim\": 4", "\"key_dim\": true"), "key_dim must be a positive integer, got true"},
      {with("\"key_dim\": 4", "\"key_dim\": 18446744073709551615"),
       "key_dim must be a positive integer, got 18446744073709551615"},
      {with("\"pre_norm\": true", "\"pre_norm\": 1"), "pre_norm must be true or false, got 1"},
      {with("1e-06", "\"small\""), "group_norm_eps must be a finite number > 0, got \"small\""},
      {with("\"gelu\"", "1"), "activation must be a name, got 1"},
      {with("\"gelu\"", "\"relu\""), "activation must be one of \"gelu\", \"swish\", got 'relu'"},
      {with("\"power2\"", "null"), "decay must be a name or a list of numbers, got null"},
      {with("\"power2\"", "[-1, \"x\", 0]"), "decay must be a name or a list of numbers, got "},
      {with("\"power2\"", "[-1, 0]"), "decay must be one of"},
  };
  for (const auto& [text, what] : bad) {
    CAPTURE(text);
    const auto said = message<c10::ValueError>([&] { retnet::io::options_from_json(text); });
    CHECK_THAT(said, ContainsSubstring("RetNetOptions: " + what));
    CHECK(said.find('\n') == std::string::npos);
  }
}
