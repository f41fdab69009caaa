// SPDX-License-Identifier: Apache-2.0
//
// cpp_generate FOLDER PROMPT [--max_new_tokens N]: continues a text with the byte-level model in
// FOLDER. It takes the most likely byte each time.
#include <retnet/io/checkpoint.h>
#include <retnet/nn/generate.h>
#include <torch/cuda.h>

#include <cstdint>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

namespace {

void write_text(const std::string& folder, const std::string& prompt, int64_t max_new_tokens) {
  const torch::Device device = torch::cuda::is_available() ? torch::kCUDA : torch::kCPU;
  const auto model = retnet::nn::load(folder, device);
  TORCH_CHECK_VALUE(model->options.vocab_size() == 256, folder,
                    ": must hold a model of bytes, vocab_size = 256, got ",
                    model->options.vocab_size());

  const std::vector<uint8_t> bytes(prompt.begin(), prompt.end());
  const auto tokens = torch::tensor(bytes, torch::kInt64).to(device);
  const auto greedy = retnet::nn::GenerateOptions(max_new_tokens).temperature(0);
  const auto text = retnet::nn::generate(model, {tokens}, greedy)[0].to(torch::kUInt8).cpu();
  std::cout.write(static_cast<const char*>(text.const_data_ptr()), text.numel()) << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const bool has_length = arguments.size() == 4 && arguments[2] == "--max_new_tokens";
  if (arguments.size() != 2 && !has_length) {
    std::cerr << "usage: cpp_generate FOLDER PROMPT [--max_new_tokens N]\n";
    return 2;
  }
  try {
    write_text(arguments[0], arguments[1], has_length ? std::stoll(arguments[3]) : 256);
    return 0;
  } catch (const c10::Error& error) {
    std::cerr << "cpp_generate: " << error.what_without_backtrace() << '\n';
  } catch (const std::invalid_argument&) {
    std::cerr << "cpp_generate: --max_new_tokens must be a number, got " << arguments[3] << '\n';
  } catch (const std::exception& error) {
    std::cerr << "cpp_generate: " << error.what() << '\n';
  }
  return 1;
}
