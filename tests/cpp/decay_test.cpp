// SPDX-License-Identifier: Apache-2.0
//
// The decay: the range of its parameter, also when it is trained.
#include <torch/autograd.h>

#include <cmath>
#include <limits>
#include <vector>

#include "catch.h"
#include "nn_cases.h"

TEST_CASE("decay: every value of the parameter gives an ln gamma in its range") {
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<double> raws = {0, 1.5, -3, 79.5, -79.5, 80, -80, 1e30, -1e30, inf, -inf};
  const auto heads = static_cast<int64_t>(raws.size());
  // If gamma is 1, the reference is -2^-10. If it is 0 (as a float), the reference is -1.
  const std::vector<std::pair<double, double>> cases = {{-0.03, -0.03},      {0, -0x1p-10},
                                                        {-1e38, -1e38},      {-1e-38, -1e-38},
                                                        {-1e-45, -0x1p-149}, {-1e308, -1}};
  for (const auto& [configured, reference] : cases) {
    CAPTURE(configured);
    const std::vector<double> decay(raws.size(), configured);
    retnet::nn::MultiScaleRetention layer(
        small_options().num_heads(heads).decay(decay).learnable_decay(true));
    const double start = configured == 0 ? -80 : configured < -1e300 ? 80 : 0;
    CHECK((layer->log_decay_raw == start).all().item<bool>());
    CHECK(torch::equal(layer->log_decay(), layer->options.log_decay()));
    {
      const torch::NoGradGuard no_grad;
      layer->log_decay_raw.copy_(torch::tensor(raws, torch::kFloat64));
    }
    const auto value = layer->log_decay();
    // If gamma is 0, the gradient of the operator is 0. 0.3 times the smallest float would be 0.
    (torch::where(value == -inf, torch::zeros_like(value), value) * 0.3).sum().backward();
    const auto grad = layer->log_decay_raw.grad();
    for (int64_t h = 0; h < heads; ++h) {
      CAPTURE(raws[h]);
      const bool end = std::abs(raws[h]) >= 80;
      const double exact = end ? (raws[h] > 0 ? -inf : 0) : reference * std::exp(raws[h]);
      const double want = static_cast<float>(exact), got = value[h].item<double>();
      CHECK((got == want || std::abs(got - want) < 1e-6 * std::abs(want) + 1e-44));
      const double slope = end || want == -inf ? 0 : 0.3 * want;
      const double found = grad[h].item<double>();
      CHECK((found == slope || std::abs(found - slope) < 1e-6 * std::abs(slope) + 1e-44));
    }
  }
}

TEST_CASE("decay: NaN is not taken for an end") {
  auto model = random_model(small_options().learnable_decay(true));
  auto& layer = model->body->layers->at<retnet::nn::DecoderLayerImpl>(0);
  {
    const torch::NoGradGuard no_grad;
    layer.retention->log_decay_raw[1] = NAN;
  }
  CHECK(torch::equal(layer.retention->log_decay().isnan(), torch::tensor({false, true, false})));
  CHECK_THROWS_WITH(model(random_ids(1, 3)),
                    ContainsSubstring("log_decay must lie in [-inf, 0], got nan in head 1"));
}

TEST_CASE("decay: no step of an optimizer leaves the range") {
  const auto options = small_options().decay(std::vector<double>{-0.5, -0.1, -2});
  const auto ids = random_ids(2, 9);
  for (const double lr : {1e9, -1e9}) {
    RetNetForCausalLM model(RetNetOptions(options).learnable_decay(true));
    RetNetForCausalLM fixed(options);
    auto weights = fixed->named_parameters();
    std::vector<torch::Tensor> raws;
    {
      const torch::NoGradGuard no_grad;
      for (auto& item : model->named_parameters()) {
        if (const auto* weight = weights.find(item.key())) {
          weight->copy_(item.value());
        } else {
          raws.push_back(item.value());
        }
      }
    }
    REQUIRE(raws.size() == 2);
    CHECK(torch::equal(model(ids).logits, fixed(ids).logits));  // equal bit by bit at the start
    for (int step = 0; step < 6; ++step) {
      model->zero_grad();
      model(ids, std::nullopt, std::nullopt, ids).loss->backward();
      const torch::NoGradGuard no_grad;
      for (auto& raw : raws) {
        CHECK(raw.grad().isfinite().all().item<bool>());
        raw.sub_(raw.grad(), lr);
      }
    }
    CHECK(model(ids).logits.isfinite().all().item<bool>());
    auto copy = std::dynamic_pointer_cast<retnet::nn::RetNetForCausalLMImpl>(model->clone());
    CHECK(torch::equal(copy->forward(ids).logits, model(ids).logits));
  }
}

TEST_CASE("decay: constants of a module made in inference mode can be trained with") {
  std::shared_ptr<torch::nn::Module> made;
  {
    const c10::InferenceMode inference;
    made =
        std::make_shared<retnet::nn::RetNetForCausalLMImpl>(small_options().learnable_decay(true));
  }
  // The parameters of a clone are ordinary parameters. The clone shares the constants.
  auto model = std::dynamic_pointer_cast<retnet::nn::RetNetForCausalLMImpl>(made->clone());
  const auto ids = random_ids(2, 9);
  model->forward(ids, std::nullopt, std::nullopt, ids).loss->backward();
  for (const auto& parameter : model->parameters()) CHECK(parameter.grad().defined());
}
