// SPDX-License-Identifier: Apache-2.0
#include <retnet/ops/retention.h>
#include <torch/types.h>

#include <iostream>

int main() {
  const auto x = torch::ones({1, 3, 1, 2});
  const auto [out, state] = retnet::ops::retention(x, x, x, torch::zeros({1}), {}, 1.0);

  // gamma = 1: token t sees t + 1 keys of dot product 2.
  std::cout << retnet::version() << ' ' << out.sum().item<float>() << '\n';
}
