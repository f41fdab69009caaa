// SPDX-License-Identifier: Apache-2.0
//
// Retention from C++: the typed call, its gradients through torch's autograd, and its errors.
#include <retnet/ops/retention.h>
#include <torch/autograd.h>
#include <torch/types.h>

#include <cmath>
#include <limits>

#include "catch.h"

namespace {

using retnet::ops::retention;

struct Case {
  torch::Tensor q, k, v, log_decay, initial_state;
};

Case make_case(int64_t B, int64_t T) {
  torch::manual_seed(0);
  const auto options = torch::dtype(torch::kFloat64);
  return {torch::randn({B, T, 2, 3}, options), torch::randn({B, T, 2, 3}, options),
          torch::randn({B, T, 2, 5}, options),
          torch::tensor({-0.03, -std::numeric_limits<double>::infinity()}, options),
          torch::randn({B, 2, 3, 5}, options)};
}

// The recurrence of Eq. 6 in plain loops over accessors.
torch::Tensor by_recurrence(const Case& c, double scale) {
  const auto q = c.q.accessor<double, 4>(), k = c.k.accessor<double, 4>(),
             v = c.v.accessor<double, 4>();
  auto out = torch::zeros(c.v.sizes(), c.v.options());
  auto state = c.initial_state.clone();
  auto S = state.accessor<double, 4>();
  auto o = out.accessor<double, 4>();
  for (int64_t b = 0; b < q.size(0); ++b)
    for (int64_t h = 0; h < q.size(2); ++h) {
      const double gamma = std::exp(c.log_decay[h].item<double>());
      for (int64_t t = 0; t < q.size(1); ++t)
        for (int64_t i = 0; i < q.size(3); ++i)
          for (int64_t j = 0; j < v.size(3); ++j) {
            S[b][h][i][j] = gamma * S[b][h][i][j] + k[b][t][h][i] * v[b][t][h][j];
            o[b][t][h][j] += scale * q[b][t][h][i] * S[b][h][i][j];
          }
    }
  return out;
}

}  // namespace

TEST_CASE("retention: every form is the recurrence") {
  const auto c = make_case(2, 70);
  const auto expected = by_recurrence(c, 1 / std::sqrt(3.0));
  for (const auto* form : {"chunkwise", "parallel", "recurrent"}) {
    const auto [out, state] =
        retention(c.q, c.k, c.v, c.log_decay, c.initial_state, std::nullopt, form);
    INFO(form);
    CHECK((out - expected).norm().item<double>() < 1e-12 * expected.norm().item<double>());
    CHECK(state.sizes() == c.initial_state.sizes());
  }
}

TEST_CASE("retention: gradients flow to every input") {
  auto c = make_case(1, 20);
  for (auto* x : {&c.q, &c.k, &c.v, &c.log_decay, &c.initial_state}) x->requires_grad_();
  const auto [out, state] = retention(c.q, c.k, c.v, c.log_decay, c.initial_state);
  (out.sum() + state.sum()).backward();
  for (const auto& x : {c.q, c.k, c.v, c.initial_state})
    CHECK(x.grad().abs().sum().item<double>() > 0);
  CHECK(c.log_decay.grad()[0].item<double>() != 0);
  CHECK(c.log_decay.grad()[1].item<double>() == 0);  // gamma = 0
}

TEST_CASE("retention: an error names operator, argument, requirement and value") {
  const auto c = make_case(1, 4);
  CHECK_THROWS_WITH(retention(c.q, c.k.narrow(1, 0, 3), c.v, c.log_decay),
                    ContainsSubstring("retention: k must have shape [B, T, H, Dk] = [1, 4, 2, 3], "
                                      "got [1, 3, 2, 3]"));
  CHECK_THROWS_WITH(retention(c.q, c.k, c.v, c.log_decay, {}, {}, "chunked"),
                    ContainsSubstring("form must be"));
}
