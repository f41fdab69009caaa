// SPDX-License-Identifier: Apache-2.0
#include <retnet/nn/generate.h>
#include <retnet/ops/retention.h>
#include <torch/torch.h>

#include <iostream>

int main() {
  const auto x = torch::ones({1, 3, 1, 2});
  const auto [out, state] = retnet::ops::retention(x, x, x, torch::zeros({1}), {}, 1.0);

  retnet::nn::RetNetForCausalLM model(retnet::nn::RetNetOptions::preset("tiny"));
  const auto tokens = torch::randint(256, {4, 128}, torch::kInt64);
  model(tokens, std::nullopt, std::nullopt, /*labels=*/tokens).loss->backward();
  const auto texts = retnet::nn::generate(model, {tokens[0]}, retnet::nn::GenerateOptions(16));

  // gamma = 1: token t sees t + 1 keys of dot product 2.
  std::cout << retnet::version() << ' ' << out.sum().item<float>() << ' ' << texts[0].numel()
            << '\n';
}
