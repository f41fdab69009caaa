// SPDX-License-Identifier: Apache-2.0
#include <retnet/nn/generate.h>
#include <retnet/ops/retention.h>
#include <torch/torch.h>

#include <iostream>

// docs/cpp/guide.md
int64_t train_and_decode() {
  const auto options = retnet::nn::RetNetOptions()
                           .vocab_size(256)
                           .embed_dim(64)
                           .num_layers(2)
                           .num_heads(2)
                           .key_dim(32)
                           .value_dim(64)
                           .ffn_dim(128)
                           .decay("linspace");
  retnet::nn::RetNetForCausalLM model(options);

  torch::optim::AdamW optimizer(model->parameters(), torch::optim::AdamWOptions(1e-3));
  for (int step = 0; step < 3; ++step) {
    const auto tokens = torch::randint(256, {4, 64}, torch::kInt64);
    const auto loss = model(tokens, std::nullopt, std::nullopt, /*labels=*/tokens).loss.value();
    optimizer.zero_grad();
    loss.backward();
    optimizer.step();
  }

  torch::NoGradGuard no_grad;
  auto output = model(torch::randint(256, {1, 8}, torch::kInt64));
  for (int n = 0; n < 4; ++n) {
    const auto token = output.logits.select(1, -1).argmax(-1, /*keepdim=*/true);
    output = model(token, output.state);
  }
  const auto tokens_read = output.state.positions.item<int64_t>();  // 8 + 4
  return tokens_read;
}

int main() {
  const auto x = torch::ones({1, 3, 1, 2});
  const auto [out, state] = retnet::ops::retention(x, x, x, torch::zeros({1}), {}, 1.0);

  retnet::nn::RetNetForCausalLM model(retnet::nn::RetNetOptions::preset("tiny"));
  const auto tokens = torch::randint(256, {4, 128}, torch::kInt64);
  model(tokens, std::nullopt, std::nullopt, /*labels=*/tokens).loss->backward();
  const auto texts = retnet::nn::generate(model, {tokens[0]}, retnet::nn::GenerateOptions(16));

  // gamma = 1: token t sees t + 1 keys of dot product 2.
  std::cout << retnet::version() << ' ' << out.sum().item<float>() << ' ' << texts[0].numel() << ' '
            << train_and_decode() << '\n';
}
