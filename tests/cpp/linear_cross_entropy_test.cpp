// SPDX-License-Identifier: Apache-2.0
//
// linear_cross_entropy, and the loss of a model.
#include <ATen/autocast_mode.h>
#include <retnet/nn/linear_cross_entropy.h>
#include <torch/autograd.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "catch.h"
#include "nn_cases.h"

TEST_CASE("linear_cross_entropy of any head, or of one whose logits may be overwritten") {
  torch::manual_seed(1);
  // There are two chunks. vocab_size only limits the length of a chunk.
  const auto hidden = torch::randn({1, 1026, 3}, torch::kFloat64).requires_grad_();
  const auto weight = torch::randn({5, 3}, torch::kFloat64).requires_grad_();
  const auto bias = torch::randn({5}, torch::kFloat64).requires_grad_();
  const auto targets = torch::randint(5, {1, 1026}, torch::kInt64);
  targets.slice(1, 7, 900, 3).fill_(retnet::nn::kIgnoreIndex);
  for (const bool overwrite : {false, true}) {
    const auto head = [&](const torch::Tensor& x, const std::vector<torch::Tensor>& p) {
      const auto logits = torch::linear(x, p[0], p[1]);
      return overwrite ? logits : logits.sigmoid();  // sigmoid keeps its output
    };
    const auto expected = torch::cross_entropy_loss(head(hidden, {weight, bias}).flatten(0, 1),
                                                    targets.flatten(), {});
    const auto loss = retnet::nn::linear_cross_entropy(hidden, head, targets, int64_t{1} << 25,
                                                       {weight, bias}, "mean", overwrite);
    CHECK(torch::allclose(loss, expected, 1e-12, 1e-12));
    const auto grads = torch::autograd::grad({loss}, {hidden, weight, bias});
    const auto expected_grads = torch::autograd::grad({expected}, {hidden, weight, bias});
    for (size_t i = 0; i < grads.size(); ++i) {
      CHECK(torch::allclose(grads[i], expected_grads[i], 1e-12, 1e-12));
    }
  }
}

torch::Tensor plain_head(const torch::Tensor& x, const std::vector<torch::Tensor>& parameters) {
  return torch::linear(x, parameters[0]);
}

TEST_CASE("linear_cross_entropy: gradients of 16-bit parameters are summed in float32") {
  // Each of 300 chunks adds -512 and 512. In bfloat16 256 * 512 + 512 is 256 * 512.
  const auto hidden = torch::ones({1, 300 * 1024, 1}, torch::kBFloat16);
  const auto targets = torch::zeros({1, 300 * 1024}, torch::kInt64);
  for (const auto& [reduction, size] :
       std::map<std::string, float>{{"sum", 300 * 512.0f}, {"mean", 0.5f}}) {
    const auto weight = torch::zeros({2, 1}, torch::kBFloat16).requires_grad_();
    retnet::nn::linear_cross_entropy(hidden, plain_head, targets, int64_t{1} << 25, {weight},
                                     reduction, /*overwrite=*/true)
        .backward();
    CHECK(weight.grad()[0].item<float>() == -size);
    CHECK(weight.grad()[1].item<float>() == size);
  }
}

TEST_CASE("linear_cross_entropy: gradients are 0 without a target") {
  const auto hidden = torch::ones({1, 1026, 3}), weight = torch::zeros({5, 3}).requires_grad_();
  const auto targets = torch::full({1, 1026}, retnet::nn::kIgnoreIndex, torch::kInt64);
  retnet::nn::linear_cross_entropy(hidden, plain_head, targets, int64_t{1} << 25, {weight})
      .backward();
  CHECK(!weight.grad().any().item<bool>());
}

TEST_CASE("linear_cross_entropy: autocast keeps no cast of a parameter") {
  const auto hidden = torch::randn({1, 1026, 3}), weight = torch::randn({5, 3}).requires_grad_();
  const auto targets = torch::zeros({1, 1026}, torch::kInt64);
  std::vector<c10::weak_intrusive_ptr<c10::TensorImpl>> casts;
  const auto head = [&](const torch::Tensor& x, const std::vector<torch::Tensor>& p) {
    casts.emplace_back(
        at::autocast::cached_cast(torch::kBFloat16, p[0], torch::kCPU).getIntrusivePtr());
    return torch::linear(x, p[0]);
  };
  at::autocast::set_autocast_enabled(torch::kCPU, true);
  retnet::nn::linear_cross_entropy(hidden, head, targets, int64_t{1} << 25, {weight});
  CHECK(casts.size() == 2);
  for (const auto& cast : casts) CHECK(cast.expired());
  at::autocast::set_autocast_enabled(torch::kCPU, false);
  at::autocast::clear_cache();
}

TEST_CASE("linear_cross_entropy: what it cannot do is named") {
  const auto hidden = torch::zeros({1, 1026, 3}), weight = torch::zeros({5, 3}).requires_grad_();
  const auto targets = torch::zeros({1, 1026}, torch::kInt64);
  const auto loss = [&](const torch::Tensor& x, const torch::Tensor& t,
                        std::string_view reduction) {
    return retnet::nn::linear_cross_entropy(x, plain_head, t, int64_t{1} << 25, {weight},
                                            reduction);
  };
  CHECK(message([&] { loss(hidden[0], targets, "mean"); }) ==
        "linear_cross_entropy: hidden must have shape [B, T, d], got [1026, 3]");
  CHECK(message([&] { loss(hidden, targets[0], "mean"); }) ==
        "linear_cross_entropy: targets must have the shape of hidden's tokens, [1, 1026], got "
        "[1026]");
  CHECK(message([&] { loss(hidden, targets.to(torch::kInt32), "mean"); }) ==
        "linear_cross_entropy: targets must be int64, got Int");
  CHECK(message([&] { loss(hidden, targets, "none"); }) ==
        "linear_cross_entropy: reduction must be \"mean\" or \"sum\", got \"none\"");
  CHECK_THROWS_WITH(torch::autograd::grad({loss(hidden, targets, "mean")}, {weight}, {},
                                          std::nullopt, /*create_graph=*/true),
                    ContainsSubstring("double backward is not supported"));
}

TEST_CASE("linear_cross_entropy: the hooks of leaves and others run once, on the whole gradient") {
  torch::manual_seed(1);
  const auto leaf = torch::randn({5, 3}, torch::kFloat64).requires_grad_();
  const auto frozen = torch::randn({5}, torch::kFloat64);
  const auto start = torch::randn({1, 1026, 3}, torch::kFloat64).requires_grad_();
  const auto targets = torch::randint(5, {1, 1026}, torch::kInt64);
  const auto head = [](const torch::Tensor& x, const std::vector<torch::Tensor>& p) {
    return torch::linear(x, p[0], p[1]);
  };
  // Compare what the hooks see and leave, first with all logits at once and then in chunks.
  std::vector<std::vector<torch::Tensor>> found;
  for (const bool chunks : {false, true}) {
    const auto weight = leaf * 2, hidden = start * 3;
    std::vector<torch::Tensor> seen;
    const auto halve = [&seen](const torch::Tensor& grad) {
      seen.push_back(grad.clone());
      return grad / 2;
    };
    const auto of_leaf = leaf.register_hook(halve), of_start = start.register_hook(halve);
    weight.register_hook(halve);
    hidden.register_hook(halve);
    weight.retain_grad();
    hidden.retain_grad();
    const std::vector<torch::Tensor> parameters = {weight, frozen};
    const auto loss =
        chunks ? retnet::nn::linear_cross_entropy(hidden, head, targets, int64_t{1} << 25,
                                                  parameters, "mean", /*overwrite=*/true)
               : torch::cross_entropy_loss(head(hidden, parameters).flatten(0, 1),
                                           targets.flatten(), {});
    CHECK(seen.empty());
    (3 * loss).backward();
    std::sort(seen.begin(), seen.end(), [](const torch::Tensor& a, const torch::Tensor& b) {
      return std::make_pair(a.numel(), a.abs().sum().item<double>()) <
             std::make_pair(b.numel(), b.abs().sum().item<double>());
    });
    for (const auto& x : {weight, hidden, leaf, start}) seen.push_back(x.grad().clone());
    found.push_back(seen);
    leaf.remove_hook(of_leaf);
    start.remove_hook(of_start);
    for (const auto& x : {leaf, start}) x.mutable_grad() = torch::Tensor();
  }
  REQUIRE(found[0].size() == 8);
  REQUIRE(found[1].size() == 8);
  for (size_t i = 0; i < 8; ++i) CHECK(close(found[1][i], found[0][i]));
}
TEST_CASE("a loss without a target is NaN, and 0 as a sum, with gradients of 0") {
  auto model = random_model(small_options());
  for (const auto& ids : {random_ids(2, 0), random_ids(0, 3), random_ids(0, 0), random_ids(2, 3)}) {
    const auto scored = torch::full_like(ids, retnet::nn::kIgnoreIndex);
    const auto no_state = std::nullopt;
    for (const bool labels : {false, true}) {
      const auto loss = [&](std::string_view reduction) {
        return labels ? *model(ids, no_state, no_state, scored, "chunkwise", false, false,
                               std::nullopt, reduction)
                             .loss
                      : *model(ids, no_state, no_state, std::nullopt, "chunkwise", false, false,
                               scored, reduction)
                             .loss;
      };
      const auto mean = loss("mean"), sum = loss("sum");
      CHECK(mean.isnan().item<bool>());
      CHECK(sum.item<double>() == 0);
      mean.backward();
      sum.backward();
      for (const auto& p : model->parameters()) {
        CHECK((!p.grad().defined() || !p.grad().any().item<bool>()));
      }
    }
  }
}
