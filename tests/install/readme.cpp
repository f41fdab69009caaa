// SPDX-License-Identifier: Apache-2.0
#include <retnet/nn/generate.h>
#include <torch/torch.h>

#include <iostream>

int main() {
  retnet::nn::RetNetForCausalLM model(retnet::nn::RetNetOptions::preset("tiny"));
  const auto tokens = torch::randint(256, {4, 128}, torch::kInt64);
  model(tokens, std::nullopt, std::nullopt, /*labels=*/tokens).loss->backward();
  const auto texts = retnet::nn::generate(model, {tokens[0]}, retnet::nn::GenerateOptions(16));
  std::cout << texts[0].numel() << " tokens\n";  // the prompt and 16 more
}
