// SPDX-License-Identifier: Apache-2.0
//
// The modules in C++: keys, forms, decoding, states, copies. tests/python/cpp/test_cpp.py compares
// their numbers with the Python modules, and so with the definitions of the paper.
#include <torch/autograd.h>

#include <atomic>
#include <map>
#include <sstream>
#include <thread>

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

}  // namespace
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
