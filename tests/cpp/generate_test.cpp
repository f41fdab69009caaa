// SPDX-License-Identifier: Apache-2.0
//
// Generating text in C++: greedy, sampled, stopped, and from prompts of unequal length.
#include <ATen/autocast_mode.h>
#include <retnet/nn/decode_step.h>
#include <retnet/nn/generate.h>

#include <algorithm>
#include <cmath>

#include "catch.h"
#include "nn_cases.h"

namespace {

using retnet::nn::generate;
using retnet::nn::GenerateOptions;

std::vector<torch::Tensor> prompts() {
  const auto ids = random_ids(3, 7);
  return {ids[0].slice(0, 0, 4), ids[1].slice(0, 0, 1), ids[2]};
}

bool equal(const std::vector<torch::Tensor>& a, const std::vector<torch::Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.sizes() == y.sizes() && torch::equal(x, y);
  });
}

/// Returns the rank of each new token by the logits of the whole text; 0 is the most likely.
torch::Tensor ranks(RetNetForCausalLM model, const torch::Tensor& text, int64_t prompt) {
  const auto order = model(text.unsqueeze(0)).logits[0].argsort(-1, /*descending=*/true);
  return order.argsort(-1, /*descending=*/false)
      .slice(0, prompt - 1, -1)
      .gather(-1, text.slice(0, prompt).unsqueeze(-1));
}

GenerateOptions greedy(int64_t tokens) { return GenerateOptions(tokens).temperature(0); }

}  // namespace

TEST_CASE("generate: greedy text is the argmax of the whole, for prompts of unequal length") {
  auto model = random_model(small_options());
  const auto start = prompts();
  const auto texts = generate(model, start, greedy(12));
  REQUIRE(texts.size() == 3);
  for (size_t row = 0; row < 3; ++row) {
    const auto length = start[row].size(0);
    CHECK(texts[row].size(0) == length + 12);
    CHECK(torch::equal(texts[row].slice(0, 0, length), start[row]));
    CHECK(!ranks(model, texts[row], length).any().item<bool>());
    // A prompt gives the same text alone and with prompts of its length.
    CHECK(equal(generate(model, {start[row]}, greedy(12)), {texts[row]}));
    CHECK(equal(generate(model, {start[row], start[row]}, greedy(12)), {texts[row], texts[row]}));
  }
  CHECK(equal(generate(model, start, greedy(0)), start));
  CHECK(generate(model, {start[0].to(torch::kInt32)}, greedy(2))[0].equal(texts[0].slice(0, 0, 6)));
}

TEST_CASE("generate: a seed repeats and matters, and leaves torch's generator alone") {
  auto model = random_model(small_options());
  const auto start = prompts();
  const auto sample = [&](uint64_t seed) {
    return generate(model, start, GenerateOptions(30).seed(seed));
  };
  const auto first = sample(1);
  torch::manual_seed(5);
  const auto expected = torch::rand({3});
  torch::manual_seed(5);
  CHECK(equal(sample(1), first));
  CHECK(torch::equal(torch::rand({3}), expected));
  CHECK(!equal(sample(2), first));
  torch::manual_seed(1);
  const auto global = generate(model, start, GenerateOptions(30));
  torch::manual_seed(1);
  CHECK(equal(generate(model, start, GenerateOptions(30)), global));
}

TEST_CASE("generate: top_k, top_p and temperature") {
  auto model = random_model(small_options());
  const auto start = prompts();
  const auto likeliest = generate(model, start, greedy(10));
  CHECK(equal(generate(model, start, GenerateOptions(10).top_k(1).seed(0)), likeliest));
  CHECK(equal(generate(model, start, GenerateOptions(10).top_p(1e-9).seed(0)), likeliest));
  CHECK(equal(generate(model, start, GenerateOptions(10).temperature(1e-4).seed(0)), likeliest));
  // These values exclude no token.
  const auto all = generate(model, start, GenerateOptions(30).seed(3));
  CHECK(equal(generate(model, start, GenerateOptions(30).seed(3).top_k(13).top_p(1)), all));

  const auto some = generate(model, start, GenerateOptions(60).temperature(3).top_k(3).seed(0))[0];
  CHECK(ranks(model, some, 4).max().item<int64_t>() == 2);

  // Each token is in the smallest set whose probabilities reach p. The tokens before it do not.
  const double p = 0.7;
  const auto text = generate(model, start, GenerateOptions(60).temperature(2).top_p(p).seed(0))[0];
  const auto probability = (model(text.unsqueeze(0)).logits[0].slice(0, 3, -1) / 2).softmax(-1);
  const auto own = probability.gather(-1, text.slice(0, 4).unsqueeze(-1));
  const auto before = (probability * (probability > own)).sum(-1);
  CHECK(before.max().item<double>() < p);
  CHECK(before.max().item<double>() > p / 2);  // and not only the most likely ones
}

TEST_CASE("generate: a text ends with its first stop token") {
  auto model = random_model(small_options());
  const auto start = prompts();
  const auto whole = generate(model, start, greedy(20));
  std::vector<int64_t> stops = {whole[0][4 + 5].item<int64_t>(), whole[1][1 + 3].item<int64_t>()};
  const auto texts = generate(model, start, greedy(20).stop_tokens(stops));
  for (size_t row = 0; row < 3; ++row) {
    int64_t length = start[row].size(0);
    while (length < whole[row].size(0)) {
      const auto token = whole[row][length++].item<int64_t>();
      if (std::find(stops.begin(), stops.end(), token) != stops.end()) break;
    }
    CHECK(equal({texts[row]}, {whole[row].slice(0, 0, length)}));
  }
  CHECK(texts[0].size(0) < whole[0].size(0));
  CHECK(texts[1].size(0) < whole[1].size(0));
}

TEST_CASE("generate: the steps' logits are those of plain calls, in the same memory") {
  auto model = random_model(small_options());
  const torch::NoGradGuard no_grad;
  const auto prompt = random_ids(2, 5), tokens = random_ids(2, 6);
  auto state = model(prompt).state;
  retnet::nn::DecodeStep step(model, state.fork());
  for (int64_t t = 0; t < 6; ++t) {
    const auto ids = tokens.slice(1, t, t + 1);
    const auto output = model->forward(ids, state);
    state = output.state;
    CHECK(torch::equal(step(ids), output.logits));
  }
}

TEST_CASE("generate: why a step is not recorded as a graph") {
  auto model = random_model(small_options());
  using retnet::nn::graph_unsupported_reason;
  CHECK(graph_unsupported_reason(model, torch::kCPU).empty());
  CHECK(graph_unsupported_reason(model, torch::kMeta) ==
        "embed_tokens.weight is on cpu, the prompts on meta");
  at::autocast::set_autocast_enabled(torch::kCPU, true);
  CHECK_THAT(graph_unsupported_reason(model, torch::kCPU), ContainsSubstring("autocast is on"));
  at::autocast::set_autocast_enabled(torch::kCPU, false);
}

TEST_CASE("generate: logits that are not finite are an error, greedy or sampled") {
  const torch::NoGradGuard no_grad;
  const std::vector<torch::Tensor> start = {torch::tensor({1, 2, 3}), torch::tensor({4, 2, 3})};
  const std::vector<GenerateOptions> ways = {greedy(3), GenerateOptions(3).seed(0),
                                             greedy(3).stop_tokens({5}),
                                             GenerateOptions(3).top_k(2).top_p(0.5)};
  for (const auto& options : ways) {
    auto weights = random_model(small_options());
    weights->named_parameters()["norm.weight"].select(0, 0).fill_(std::nan(""));
    CHECK_THROWS_WITH(generate(weights, start, options),
                      ContainsSubstring("generate: logits must be finite, got nan for prompt 0"));
    // Only the second prompt contains this token.
    auto one_token = random_model(small_options());
    one_token->named_parameters()["embed_tokens.weight"].select(0, 4).fill_(std::nan(""));
    CHECK_THROWS_WITH(generate(one_token, start, options),
                      ContainsSubstring("generate: logits must be finite, got nan for prompt 1"));
  }
}

TEST_CASE("generate: bad arguments are named") {
  RetNetForCausalLM model(small_options());
  const auto raises = [&](const std::vector<torch::Tensor>& start, const GenerateOptions& options,
                          const std::string& message) {
    CHECK_THROWS_WITH(generate(model, start, options), ContainsSubstring("generate: " + message));
  };
  const auto one = prompts();
  raises({}, GenerateOptions(1), "prompts must hold at least one prompt, got none");
  raises({random_ids(2, 3)}, GenerateOptions(1), "prompts must have shape [T], T >= 1, got [2, 3]");
  raises({one[0].slice(0, 0, 0)}, GenerateOptions(1),
         "prompts must have shape [T], T >= 1, got [0]");
  raises(one, GenerateOptions(-1), "max_new_tokens must be >= 0, got -1");
  raises(one, GenerateOptions(1).temperature(-0.5), "temperature must be >= 0, got -0.5");
  raises(one, GenerateOptions(1).temperature(std::nan("")), "temperature must be >= 0, got nan");
  raises(one, GenerateOptions(1).top_k(0), "top_k must be >= 1 or None, got 0");
  raises(one, GenerateOptions(1).top_p(0), "top_p must be in (0, 1] or None, got 0");
  raises(one, GenerateOptions(1).top_p(1.5), "top_p must be in (0, 1] or None, got 1.5");
}
