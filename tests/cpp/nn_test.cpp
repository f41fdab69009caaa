// SPDX-License-Identifier: Apache-2.0
//
// The modules in C++: options, keys, forms, decoding, copies. tests/python/cpp/test_cpp.py compares
// their numbers with the Python modules, and so with the definitions of the paper.
#include <ATen/autocast_mode.h>
#include <c10/util/Exception.h>
#include <retnet/nn/linear_cross_entropy.h>
#include <torch/autograd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <map>
#include <sstream>
#include <thread>
#include <utility>

#include "catch.h"
#include "nn_cases.h"

namespace {

using retnet::nn::CausalLMOutput;
using retnet::nn::RetNetState;

std::map<std::string, std::vector<int64_t>> shapes(const torch::nn::Module& module) {
  std::map<std::string, std::vector<int64_t>> found;
  for (const auto& item : module.named_parameters()) found[item.key()] = item.value().sizes().vec();
  return found;
}

std::map<std::string, std::vector<int64_t>> expected_shapes(const Variant& variant) {
  std::map<std::string, std::vector<int64_t>> of_layer = {{"retention_norm.weight", {12}},
                                                          {"retention_norm.bias", {12}},
                                                          {"retention.q_proj.weight", {12, 12}},
                                                          {"retention.k_proj.weight", {12, 12}},
                                                          {"retention.v_proj.weight", {18, 12}},
                                                          {"retention.g_proj.weight", {18, 12}},
                                                          {"retention.out_proj.weight", {12, 18}},
                                                          {"ffn_norm.weight", {12}},
                                                          {"ffn_norm.bias", {12}},
                                                          {"ffn.up_proj.weight", {10, 12}},
                                                          {"ffn.down_proj.weight", {12, 10}}};
  const std::map<std::string, std::vector<int64_t>> extra = {
      {"retention.group_norm.weight", {6}}, {"retention.group_norm.bias", {6}},
      {"retention.log_decay_raw", {3}},     {"ffn.gate_proj.weight", {10, 12}},
      {"ffn.inner_norm.weight", {10}},      {"ffn.inner_norm.bias", {10}},
      {"retention.q_proj.bias", {12}},      {"retention.k_proj.bias", {12}},
      {"retention.v_proj.bias", {18}},      {"retention.g_proj.bias", {18}},
      {"retention.out_proj.bias", {12}},    {"ffn.up_proj.bias", {10}},
      {"ffn.down_proj.bias", {12}}};
  std::map<std::string, std::vector<int64_t>> all = {{"embed_tokens.weight", {13, 12}},
                                                     {"norm.weight", {12}},
                                                     {"norm.bias", {12}},
                                                     {"lm_head.weight", {13, 12}}};
  const std::string prefix = "layers.0.";
  for (const auto& key : variant.more) {
    if (key.starts_with(prefix)) {
      of_layer.insert(*extra.find(key.substr(prefix.size())));
    } else {
      all[key] = {12};
    }
  }
  for (const auto& key : variant.fewer) {
    all.erase(key);
    if (key.starts_with(prefix)) of_layer.erase(key.substr(prefix.size()));
  }
  for (const auto* layer : {"layers.0.", "layers.1."}) {
    for (const auto& [key, shape] : of_layer) all[layer + key] = shape;
  }
  return all;
}

std::string message(const std::function<void()>& call) {
  try {
    call();
  } catch (const c10::ValueError& error) {
    return error.what_without_backtrace();
  }
  return "nothing raised";
}

}  // namespace

// Options
// -------------------------------------------------------------------------------------------------

TEST_CASE("options: a bad value is named, as in Python") {
  const auto inf = std::numeric_limits<double>::infinity();
  const std::vector<std::pair<std::function<void(RetNetOptions&)>, std::string>> bad = {
      {[](auto& o) { o.vocab_size(0); }, "vocab_size must be a positive integer, got 0"},
      {[](auto& o) { o.embed_dim(-3); }, "embed_dim must be a positive integer, got -3"},
      {[](auto& o) { o.num_layers(0); }, "num_layers must be a positive integer, got 0"},
      {[](auto& o) { o.num_heads(0); }, "num_heads must be a positive integer, got 0"},
      {[](auto& o) { o.key_dim(0); }, "key_dim must be a positive integer, got 0"},
      {[](auto& o) { o.value_dim(0); }, "value_dim must be a positive integer, got 0"},
      {[](auto& o) { o.ffn_dim(0); }, "ffn_dim must be a positive integer, got 0"},
      {[](auto& o) { o.key_dim(5); }, "key_dim must be even, got 5"},
      {[](auto& o) { o.norm_eps(0); }, "norm_eps must be a finite number > 0, got 0.0"},
      {[](auto& o) { o.group_norm_eps(-1e-6); },
       "group_norm_eps must be a finite number > 0, got -1e-06"},
      {[](auto& o) { o.embed_scale(std::nan("")); },
       "embed_scale must be a finite number > 0, got nan"},
      {[=](auto& o) { o.residual_scale(inf); },
       "residual_scale must be a finite number > 0, got inf"},
      {[](auto& o) { o.rotary_style("x"); },
       "rotary_style must be one of \"interleaved\", \"half\", got 'x'"},
      {[](auto& o) { o.norm("batch"); }, "norm must be one of \"layer\", \"rms\", got 'batch'"},
      {[](auto& o) { o.group_norm(""); }, "group_norm must be one of \"layer\", \"rms\", got ''"},
      {[](auto& o) { o.activation("relu"); },
       "activation must be one of \"gelu\", \"swish\", got 'relu'"},
      {[](auto& o) { o.decay("x"); },
       "decay must be one of \"power2\", \"linspace\" or num_heads finite values of ln gamma <= 0 "
       "(3), got 'x'"},
      {[=](auto& o) {
         o.decay(std::vector<double>{-0.25, -inf, 0});
       },
       "decay must be one of \"power2\", \"linspace\" or num_heads finite values of ln gamma <= 0 "
       "(3), got [-0.25, -inf, 0.0]"},
      {[](auto& o) {
         o.decay(std::vector<double>{-0.1, 0.1, 0});
       },
       "decay must be <= 0 (it is ln gamma), got [-0.1, 0.1, 0.0]"},
      {[](auto& o) { o.frequencies(std::vector<double>{1}); },
       "frequencies must be one of \"retnet\", \"rope\" or key_dim / 2 finite values (2), got "
       "[1.0]"},
  };
  for (const auto& [change, expected] : bad) {
    auto options = small_options();
    change(options);
    CHECK(message([&] { RetNetForCausalLM model(options); }) == "RetNetOptions: " + expected);
  }
  CHECK(message([] { RetNetOptions::preset("3b"); }) ==
        "RetNetOptions::preset: name must be one of \"tiny\", \"small\", \"1.3b\", \"2.7b\", "
        "\"6.7b\", \"13b\", got '3b'");
  CHECK(message([] { small_options().make_state(-1); }) ==
        "make_state: batch must be an integer >= 0, got -1");
}

// sum(p.numel() for p in RetNetForCausalLM(RetNetConfig.preset(name), device="meta").parameters())
TEST_CASE("presets have the parameters of Python's, counted on the meta device") {
  const std::vector<std::tuple<const char*, int64_t, size_t>> table = {
      {"tiny", 657152, 37},      {"small", 266930176, 180}, {"1.3b", 1339232256, 268},
      {"2.7b", 2680755200, 356}, {"6.7b", 6705127424, 356}, {"13b", 12911421440, 444}};
  for (const auto& [name, numel, tensors] : table) {
    INFO(name);
    const RetNetForCausalLM model(RetNetOptions::preset(name), torch::kMeta);
    int64_t count = 0;
    for (const auto& parameter : model->parameters()) {
      REQUIRE(parameter.is_meta());
      count += parameter.numel();
    }
    CHECK(count == numel);
    CHECK(model->parameters().size() == tensors);
  }
}

// The model
// -------------------------------------------------------------------------------------------------

TEST_CASE("modules: keys, shapes and gradients for every switch") {
  for (const auto& variant : variants()) {
    INFO(variant.name);
    auto model = random_model(variant.options());
    CHECK(shapes(*model) == expected_shapes(variant));
    CHECK(model->buffers().empty());
    const auto ids = random_ids(2, 9);
    const auto output = model(ids, std::nullopt, std::nullopt, ids);
    CHECK_FALSE(output.logits.defined());
    CHECK(model(ids).logits.sizes() == c10::IntArrayRef({2, 9, 13}));
    CHECK(output.state.positions.eq(9).all().item<bool>());
    output.loss->backward();
    for (const auto& item : model->named_parameters()) {
      INFO(item.key());
      const auto& grad = item.value().grad();
      REQUIRE(grad.defined());
      CHECK(grad.isfinite().all().item<bool>());
      CHECK(grad.any().item<bool>());
    }
  }
}

TEST_CASE("modules: forms agree, in values and gradients") {
  auto model = random_model(small_options());
  const auto ids = random_ids(2, 150);
  std::vector<torch::Tensor> logits, states, grads;
  for (const auto* form : {"chunkwise", "parallel", "recurrent"}) {
    const auto output = model(ids, std::nullopt, std::nullopt, ids, form);
    logits.push_back(model(ids, std::nullopt, std::nullopt, std::nullopt, form).logits);
    states.push_back(output.state.retention);
    std::vector<torch::Tensor> flat;
    for (const auto& grad : torch::autograd::grad({*output.loss}, model->parameters())) {
      flat.push_back(grad.flatten());
    }
    grads.push_back(torch::cat(flat));
  }
  for (const size_t form : {1, 2}) {
    CHECK(close(logits[form], logits[0]));
    CHECK(close(states[form], states[0]));
    CHECK(close(grads[form], grads[0], 1e-9));
  }
  CHECK_THROWS_WITH(model(ids, std::nullopt, std::nullopt, std::nullopt, "sideways"),
                    ContainsSubstring("form must be"));
}

TEST_CASE("modules: reading a prompt, then segments and steps, equals the whole") {
  for (const auto& variant : variants()) {
    INFO(variant.name);
    auto model = random_model(variant.options());
    const torch::NoGradGuard no_grad;
    const auto ids = random_ids(2, 20);
    const auto whole = model(ids);
    auto output = model(ids.slice(1, 0, 11));
    std::vector<torch::Tensor> parts = {output.logits};
    for (int64_t t = 11; t < 17; ++t) {
      output = model(ids.slice(1, t, t + 1), output.state, std::nullopt, std::nullopt, "chunkwise",
                     /*inplace=*/t % 2 == 0);
      parts.push_back(output.logits);
    }
    output = model(ids.slice(1, 17), output.state);
    parts.push_back(output.logits);
    CHECK(close(torch::cat(parts, 1), whole.logits));
    CHECK(close(output.state.retention, whole.state.retention));
    CHECK(torch::equal(output.state.positions, whole.state.positions));
  }
}

TEST_CASE("modules: a step copies the state unless inplace, and is none with grad mode on") {
  auto model = random_model(small_options());
  const auto ids = random_ids(2, 1);
  const auto start = small_options().make_state(2, torch::kFloat64);
  const auto with_grad = model(ids, start, std::nullopt, std::nullopt, "chunkwise", true);
  CHECK(with_grad.logits.requires_grad());
  CHECK(!start.retention.any().item<bool>());

  const torch::NoGradGuard no_grad;
  const auto copied = model(ids, start);
  CHECK(close(copied.logits, with_grad.logits));
  CHECK(!start.retention.any().item<bool>());
  CHECK(start.positions.eq(0).all().item<bool>());
  const auto same = model(ids, start, std::nullopt, std::nullopt, "chunkwise", true).state;
  CHECK(same.retention.is_same(start.retention));
  CHECK(same.positions.is_same(start.positions));
  CHECK(torch::equal(start.retention, copied.state.retention));
  CHECK(start.positions.eq(1).all().item<bool>());
}

TEST_CASE("modules: packed sequences equal separate ones, with and without a state") {
  auto model = random_model(small_options());
  const torch::NoGradGuard no_grad;
  const auto bounds = torch::tensor({0, 7, 7, 8, 20}, torch::kInt32);
  const auto ids = random_ids(1, 20);
  const auto before = model(random_ids(4, 6)).state;
  before.positions.copy_(torch::tensor({6, 2, 0, 9}));
  for (const bool with_state : {false, true}) {
    INFO(with_state);
    const auto start = with_state ? std::optional(before) : std::nullopt;
    const auto packed = model(ids, start, bounds);
    const auto packed_loss = model(ids, start, bounds, ids).loss;
    auto loss = torch::zeros({}, torch::kFloat64);
    for (int64_t n = 0; n < 4; ++n) {
      const auto from = bounds[n].item<int64_t>(), to = bounds[n + 1].item<int64_t>();
      const auto row = start ? std::optional(start->select(torch::tensor({n}))) : std::nullopt;
      const auto part = ids.slice(1, from, to);
      const auto alone = model(part, row);
      CHECK(close(packed.logits.slice(1, from, to), alone.logits));
      CHECK(close(packed.state.retention.select(1, n), alone.state.retention.select(1, 0)));
      CHECK(torch::equal(packed.state.positions[n], alone.state.positions[0]));
      if (to - from > 1) {
        loss += *model(part, row, std::nullopt, part).loss * (to - from - 1);
      }
    }
    CHECK(close(*packed_loss, loss / (6 + 11)));
  }
}

TEST_CASE("modules: wrong shapes are named") {
  RetNetForCausalLM model(small_options());
  const auto ids = random_ids(2, 3);
  const auto state = small_options().make_state(1);
  CHECK(message([&] { model(ids[0]); }) == "RetNet: input_ids must have shape [B, T], got [3]");
  CHECK(message([&] { model(ids, std::nullopt, std::nullopt, random_ids(2, 4)); }) ==
        "RetNetForCausalLM: labels must have the shape of input_ids, [2, 3], got [2, 4]");
  CHECK(message([&] { model(ids, state); }) ==
        "RetNet: state.retention must have shape [L, B, H, K, V] = [2, 2, 3, 4, 6], got [2, 1, 3, "
        "4, 6]");
  CHECK(message([&] {
          model(ids.slice(0, 0, 1), RetNetState{state.retention, torch::zeros({2})});
        }) == "RetNet: state.positions must have shape [B] = [1], got [2]");
  auto& layer = model->body->layers->at<retnet::nn::DecoderLayerImpl>(0);
  CHECK(message([&] {
          layer.forward(torch::zeros({1, 3, 12}), state.retention[0]);
        }) == "MultiScaleRetention: positions must be given with state or cu_seqlens, got None");
}

// State, dtypes, copies
// -------------------------------------------------------------------------------------------------

TEST_CASE("state: make, fork, select, detach") {
  const auto fresh = small_options().make_state(5);
  CHECK(fresh.retention.sizes() == c10::IntArrayRef({2, 5, 3, 4, 6}));
  CHECK(fresh.retention.scalar_type() == torch::kFloat32);
  CHECK(fresh.positions.scalar_type() == torch::kInt64);
  CHECK(!fresh.retention.any().item<bool>());
  CHECK(small_options().make_state(1, torch::kMeta).positions.is_meta());

  auto model = random_model(small_options());
  const auto state = model(random_ids(3, 4)).state;
  const auto fork = state.fork();
  fork.positions.zero_();
  CHECK(state.positions.eq(4).all().item<bool>());
  const auto rows = torch::tensor({2, 2, 0, 1});
  const auto picked = state.select(rows);
  CHECK(picked.positions.sizes() == c10::IntArrayRef({4}));
  for (int64_t row = 0; row < 4; ++row) {
    CHECK(torch::equal(picked.retention.select(1, row),
                       state.retention.select(1, rows[row].item<int64_t>())));
  }
  CHECK(state.retention.requires_grad());
  CHECK(!state.detach().retention.requires_grad());
}

TEST_CASE("to(dtype) leaves the decay alone, trained or not") {
  for (const bool learnable : {false, true}) {
    for (const auto dtype : {torch::kBFloat16, torch::kFloat16, torch::kFloat64}) {
      RetNetForCausalLM model(small_options().learnable_decay(learnable));
      auto& layer = model->body->layers->at<retnet::nn::DecoderLayerImpl>(0);
      auto& raw = layer.retention->log_decay_raw;
      CHECK(raw.defined() == learnable);
      if (learnable) {
        const torch::NoGradGuard no_grad;
        raw.fill_(0.123456789);
      }
      const auto decay = layer.retention->log_decay().clone();
      model->to(dtype);
      model->to(torch::kCPU, dtype);
      CHECK(layer.retention->q_proj->weight.scalar_type() == dtype);
      if (learnable) {
        CHECK(raw.scalar_type() == torch::kFloat32);
        CHECK(raw[0].item<float>() == 0.123456789f);
        CHECK(layer.retention->named_parameters()["log_decay_raw"].is_same(raw));
      }
      CHECK(torch::equal(layer.retention->log_decay(), decay));
      const auto output = model(random_ids(1, 4));
      CHECK(output.logits.scalar_type() == dtype);
      const auto kept = dtype == torch::kFloat64 ? torch::kFloat64 : torch::kFloat32;
      CHECK(output.state.retention.scalar_type() == kept);
    }
  }
}

// The decay
// -------------------------------------------------------------------------------------------------

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

TEST_CASE("checkpoint_layers: hooks of parameters run once in each backward pass, in any thread") {
  auto model = random_model(small_options());
  const auto ids = random_ids(2, 6);
  const auto gradients = [&] {
    std::vector<torch::Tensor> found;
    for (const auto& p : model->parameters()) found.push_back(p.grad().clone());
    model->zero_grad();
    return found;
  };
  const auto backward = [&] { model(ids, std::nullopt, std::nullopt, ids).loss->backward(); };
  const auto weight = model->named_parameters()["layers.1.retention.q_proj.weight"];
  std::atomic<int> calls = 0;
  weight.register_hook([&](const torch::Tensor& grad) {
    ++calls;
    return grad * 2;
  });
  backward();
  const auto expected = gradients();
  CHECK(calls == 1);
  model->body->checkpoint_layers = true;
  backward();
  const auto found = gradients();
  for (size_t i = 0; i < found.size(); ++i) CHECK(close(found[i], expected[i]));
  CHECK(calls == 2);

  constexpr int kRounds = 40;
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kRounds; ++i) backward();
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK(calls == 2 + 2 * kRounds);
  const auto sums = gradients();
  for (size_t i = 0; i < sums.size(); ++i) {
    CHECK(close(sums[i], expected[i] * (2 * kRounds), 1e-8));
  }
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

TEST_CASE("last_only without a token is named") {
  auto model = random_model(small_options());
  const auto last = [&](const torch::Tensor& ids, const std::vector<int>& bounds) {
    const auto cu = bounds.empty() ? std::nullopt : std::optional(torch::tensor(bounds));
    return model(ids, std::nullopt, cu ? std::optional(cu->to(torch::kInt32)) : std::nullopt,
                 std::nullopt, "chunkwise", false, /*last_only=*/true)
        .logits;
  };
  CHECK(message([&] { last(random_ids(2, 0), {}); }) ==
        "RetNetForCausalLM: input_ids must have T >= 1 tokens with last_only, got [2, 0]");
  CHECK(last(random_ids(0, 3), {}).sizes() == torch::IntArrayRef({0, 1, 13}));
  for (const auto& [bounds, sequence] : std::map<std::vector<int>, std::string>{
           {{0, 0, 4, 7}, "0"}, {{0, 3, 3, 7}, "1"}, {{0, 3, 7, 7}, "2"}, {{0, 3, 3, 3, 7}, "1"}}) {
    CHECK(
        message([&] { last(random_ids(1, 7), bounds); }) ==
        "RetNetForCausalLM: cu_seqlens must have no empty sequence with last_only, got sequence " +
            sequence + " of length 0");
  }
}

TEST_CASE("clone copies, reset_parameters makes everything anew, printing names the sizes") {
  auto model = random_model(small_options().learnable_decay(true).group_norm_affine(true));
  const auto ids = random_ids(1, 6);
  const auto expected = model(ids).logits;
  RetNetForCausalLM copy(std::dynamic_pointer_cast<RetNetForCausalLM::Impl>(model->clone()));
  CHECK(torch::equal(copy(ids).logits, expected));
  {
    const torch::NoGradGuard no_grad;
    for (auto& parameter : copy->parameters()) parameter.fill_(7);
  }
  CHECK(torch::equal(model(ids).logits, expected));
  copy->reset_parameters();
  for (const auto& item : copy->named_parameters()) {
    INFO(item.key());
    CHECK(!item.value().eq(7).any().item<bool>());
  }
  std::ostringstream text;
  text << model;
  for (const auto* part : {"num_heads=3", "decay_norm=true", "gated=false", "layer, 12, eps=1e-06",
                           "Embedding(num_embeddings=13", "in_features=18"}) {
    CHECK_THAT(text.str(), ContainsSubstring(part));
  }
}
