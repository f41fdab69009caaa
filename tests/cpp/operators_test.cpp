// SPDX-License-Identifier: Apache-2.0
//
// Calls each other operator from C++ once and compares it with its definition in plain loops.
#include <ATen/core/dispatch/Dispatcher.h>
#include <retnet/ops/cross_entropy.h>
#include <retnet/ops/gated_group_norm.h>
#include <retnet/ops/multi_scale_retention_step.h>
#include <retnet/ops/retention_step.h>
#include <retnet/ops/rotary.h>
#include <retnet/version.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>

#include "catch.h"

namespace {

constexpr int64_t B = 2, H = 3, Dk = 4, Dv = 5;
constexpr double kEps = 1e-5;

torch::Tensor normal(torch::IntArrayRef sizes) { return torch::randn(sizes, torch::kFloat64); }

torch::Tensor frequencies() { return torch::tensor({1.0f, 0.125f}); }

// x [B, H, Dk], positions [B]. Turns channels 2i and 2i + 1 by positions[b] * frequencies[i].
torch::Tensor rotated(const torch::Tensor& x, const torch::Tensor& positions) {
  auto out = torch::empty_like(x);
  const auto from = x.accessor<double, 3>();
  auto to = out.accessor<double, 3>();
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h)
      for (int64_t i = 0; i < Dk / 2; ++i) {
        const double angle = positions[b].item<double>() * frequencies()[i].item<double>();
        const double first = from[b][h][2 * i], second = from[b][h][2 * i + 1];
        to[b][h][2 * i] = first * std::cos(angle) - second * std::sin(angle);
        to[b][h][2 * i + 1] = first * std::sin(angle) + second * std::cos(angle);
      }
  return out;
}

// x, gate [B, H, Dv], weight [H, Dv], bias [Dv].
torch::Tensor normed(const torch::Tensor& x, const torch::Tensor& gate, const torch::Tensor& weight,
                     const torch::Tensor& bias) {
  auto out = torch::empty_like(x);
  const auto from = x.accessor<double, 3>(), g = gate.accessor<double, 3>();
  const auto w = weight.accessor<double, 2>();
  const auto shift = bias.accessor<double, 1>();
  auto to = out.accessor<double, 3>();
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h) {
      double mean = 0, variance = 0;
      for (int64_t d = 0; d < Dv; ++d) mean += from[b][h][d] / Dv;
      for (int64_t d = 0; d < Dv; ++d) variance += std::pow(from[b][h][d] - mean, 2) / Dv;
      for (int64_t d = 0; d < Dv; ++d) {
        const double y = (from[b][h][d] - mean) / std::sqrt(variance + kEps);
        to[b][h][d] = (y * w[h][d] + shift[d]) * g[b][h][d] / (1 + std::exp(-g[b][h][d]));
      }
    }
  return out;
}

// q, k [B, H, Dk], v [B, H, Dv]. Updates state [B, H, Dk, Dv].
torch::Tensor stepped(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                      const torch::Tensor& log_decay, const torch::Tensor& state) {
  auto out = torch::zeros_like(v);
  const auto query = q.accessor<double, 3>(), key = k.accessor<double, 3>(),
             value = v.accessor<double, 3>();
  auto S = state.accessor<double, 4>();
  auto o = out.accessor<double, 3>();
  for (int64_t b = 0; b < B; ++b)
    for (int64_t h = 0; h < H; ++h) {
      const double gamma = std::exp(log_decay[h].item<double>());
      for (int64_t i = 0; i < Dk; ++i)
        for (int64_t j = 0; j < Dv; ++j) {
          S[b][h][i][j] = gamma * S[b][h][i][j] + key[b][h][i] * value[b][h][j];
          o[b][h][j] += query[b][h][i] * S[b][h][i][j] / std::sqrt(double{Dk});
        }
    }
  return out;
}

void check_equal(const torch::Tensor& actual, const torch::Tensor& expected) {
  REQUIRE(actual.sizes() == expected.sizes());
  CHECK((actual - expected).norm().item<double>() < 1e-12 * expected.norm().item<double>());
}

}  // namespace

TEST_CASE("rotary") {
  torch::manual_seed(0);
  const auto q = normal({B, H, Dk}), k = normal({B, H, Dk});
  const auto positions = torch::tensor({7, 1000});
  const auto [turned_q, turned_k] = retnet::ops::rotary(q, k, positions, frequencies());
  check_equal(turned_q, rotated(q, positions));
  check_equal(turned_k, rotated(k, positions));
}

TEST_CASE("gated_group_norm") {
  torch::manual_seed(1);
  const auto x = normal({B, H, Dv}), gate = normal({B, H, Dv});
  const auto weight = normal({H, Dv}), bias = normal({Dv});
  check_equal(retnet::ops::gated_group_norm(x, gate, weight, bias, kEps),
              normed(x, gate, weight, bias));
}

TEST_CASE("retention_step") {
  torch::manual_seed(2);
  const auto q = normal({B, H, Dk}), k = normal({B, H, Dk}), v = normal({B, H, Dv});
  const auto log_decay = torch::tensor({-0.03, -0.5, 0.0}, torch::kFloat64);
  const auto state = normal({B, H, Dk, Dv}), expected_state = state.clone();
  const auto expected = stepped(q, k, v, log_decay, expected_state);
  check_equal(retnet::ops::retention_step(q, k, v, log_decay, state), expected);
  check_equal(state, expected_state);
}

TEST_CASE("multi_scale_retention_step") {
  torch::manual_seed(3);
  const auto q = normal({B, H, Dk}), k = normal({B, H, Dk}), v = normal({B, H, Dv});
  const auto gate = normal({B, H, Dv}), weight = normal({H, Dv}), bias = normal({Dv});
  const auto log_decay = torch::tensor({-0.03, -0.5, 0.0}, torch::kFloat64);
  const auto positions = torch::tensor({7, 1000});
  const auto state = normal({B, H, Dk, Dv}), expected_state = state.clone();
  const auto retained =
      stepped(rotated(q, positions), rotated(k, positions), v, log_decay, expected_state);
  const auto out = retnet::ops::multi_scale_retention_step(
      q, k, v, gate, log_decay, state, positions, frequencies(), weight, bias, kEps);
  check_equal(out, normed(retained, gate, weight, bias));
  check_equal(state, expected_state);
}

TEST_CASE("cross_entropy_with_gradient_") {
  torch::manual_seed(4);
  const auto logits = normal({B, Dv}), expected = torch::zeros({B, Dv}, torch::kFloat64);
  const auto targets = torch::tensor({-100, 3});
  double sum = 0;
  for (int64_t c = 0; c < Dv; ++c) sum += std::exp(logits[1][c].item<double>());
  for (int64_t c = 0; c < Dv; ++c) {
    expected[1][c] = std::exp(logits[1][c].item<double>()) / sum - (c == 3);
  }
  const double loss = std::log(sum) - logits[1][3].item<double>();
  check_equal(retnet::ops::cross_entropy_with_gradient_(logits, targets),
              torch::tensor(loss, torch::kFloat64));
  check_equal(logits, expected);
}

TEST_CASE("linking the library registers every operator, for the devices without a kernel too") {
  for (const auto* name : {"retention", "retention_backward", "retention_step", "rotary",
                           "rotary_backward", "gated_group_norm", "gated_group_norm_backward",
                           "multi_scale_retention_step", "cross_entropy_with_gradient_"}) {
    INFO(name);
    const auto op = c10::Dispatcher::singleton().findSchema({std::string("retnet::") + name, ""});
    REQUIRE(op.has_value());
    for (const auto key : {c10::DispatchKey::CPU, c10::DispatchKey::CUDA, c10::DispatchKey::XPU,
                           c10::DispatchKey::Meta, c10::DispatchKey::AutogradCPU}) {
      CHECK(op->hasComputedKernelForDispatchKey(key));
    }
  }
}

TEST_CASE("the version is three numbers") {
  const auto version = retnet::version();
  CHECK(std::count(version.begin(), version.end(), '.') == 2);
}
