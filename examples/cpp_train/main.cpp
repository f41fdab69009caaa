// SPDX-License-Identifier: Apache-2.0
//
// cpp_train FOLDER TEXTFILE: trains the byte-level model in FOLDER, or a new one of the preset
// "tiny", for a few steps on a text, and saves it there. `retnet generate FOLDER` reads it.
#include <retnet/io/checkpoint.h>
#include <torch/cuda.h>
#include <torch/optim/adamw.h>
#include <torch/utils.h>

#include <cmath>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <vector>

namespace {

using retnet::nn::RetNetForCausalLM;
using retnet::nn::RetNetOptions;
namespace fs = std::filesystem;

constexpr int64_t kSteps = 20, kBatch = 8, kLength = 128;

/// Returns the bytes of a file, [N] uint8.
torch::Tensor read_bytes(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  TORCH_CHECK_VALUE(file, path.string(), ": cannot be read");
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const auto size = std::ssize(bytes);
  TORCH_CHECK_VALUE(size >= kLength, path.string(), ": must hold ", kLength, " bytes or more, got ",
                    size);
  return torch::from_blob(const_cast<char*>(bytes.data()), {size}, torch::kUInt8).clone();
}

void train(const fs::path& folder, const fs::path& file) {
  const torch::Device device = torch::cuda::is_available() ? torch::kCUDA : torch::kCPU;
  const auto bytes = read_bytes(file);
  auto model = fs::exists(folder / "config.json")
                   ? retnet::nn::load(folder, device)
                   : RetNetForCausalLM(RetNetOptions::preset("tiny"), torch::TensorOptions(device));
  TORCH_CHECK_VALUE(model->options.vocab_size() == 256, folder.string(),
                    ": must hold a model of bytes, vocab_size = 256, got ",
                    model->options.vocab_size());

  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(1e-3));
  for (int64_t step = 1; step <= kSteps; ++step) {
    const auto starts = torch::randint(bytes.numel() - kLength + 1, {kBatch, 1}, torch::kInt64);
    const auto tokens = bytes.take(starts + torch::arange(kLength)).to(device, torch::kInt64);
    const auto output = model(tokens, std::nullopt, std::nullopt, /*labels=*/tokens);
    optimizer.zero_grad();
    output.loss->backward();
    optimizer.step();
    if (step == 1 || step == kSteps) {
      std::cout << "step " << step << ": " << output.loss->item<double>() / std::log(2.0)
                << " bits/byte\n";
    }
  }
  retnet::nn::save(folder, model);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: cpp_train FOLDER TEXTFILE\n";
    return 2;
  }
  try {
    train(argv[1], argv[2]);
    return 0;
  } catch (const c10::Error& error) {
    std::cerr << "cpp_train: " << error.what_without_backtrace() << '\n';
  } catch (const std::exception& error) {
    std::cerr << "cpp_train: " << error.what() << '\n';
  }
  return 1;
}
