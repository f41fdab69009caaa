// SPDX-License-Identifier: Apache-2.0
//
// Tests csrc/nn/cuda/step_graph.cpp with the operator of a decode step.
#include "nn/step_graph.h"

#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include <stdexcept>
#include <vector>

#include "catch.h"
#include "machine/machine.h"
#include "ops/retention_step.h"

namespace {

using retnet::nn::record_step;
using retnet::nn::run_beside;
using retnet::on_simt::Call;
using retnet::on_simt::Machine;

const c10::Device kDevice(c10::DeviceType::CPU);

// A step between operators of torch, as in a model.
struct Step {
  at::Tensor token = at::randn({2, 3, 8});
  at::Tensor log_decay = at::full({3}, -0.1);
  at::Tensor state = at::zeros({2, 3, 8, 8});
  at::Tensor out;

  void operator()() {
    const auto q = token * 2;
    out = retnet::ops::retention_step(q, token, token + 1, log_decay, state) - 1;
  }

  // out of the next step, in float64 and by its definition.
  at::Tensor expected() const {
    const auto x = token.to(at::kDouble);
    const auto next = state.to(at::kDouble) * log_decay.to(at::kDouble).exp().view({3, 1, 1}) +
                      x.unsqueeze(-1) * (x + 1).unsqueeze(-2);
    return (2 * x.unsqueeze(-2)).matmul(next).squeeze(-2) / std::sqrt(8.0) - 1;
  }
};

bool close(const at::Tensor& actual, const at::Tensor& expected) {
  return at::allclose(actual.to(at::kDouble), expected, 1e-5, 1e-5);
}

std::vector<std::string> findings() { return Machine::get().take_findings(); }

}  // namespace

TEST_CASE("a step beside the current stream") {
  Step step;
  for (int i = 0; i < 2; ++i) {
    const auto expected = step.expected();
    run_beside(kDevice, [&] { step(); });
    CHECK(close(step.out, expected));
  }
  CHECK(findings().empty());
}

TEST_CASE("a recorded step is repeated with what its memory holds then") {
  Step step;
  run_beside(kDevice, [&] { step(); });
  const auto state = step.state.clone();
  const auto launches = Machine::get().launches;
  const auto graph = record_step(kDevice, [&] { step(); });
  CHECK(graph.unsupported_reason.empty());
  CHECK(at::equal(step.state, state));  // nothing ran
  CHECK(Machine::get().launches == launches);
  for (int i = 0; i < 3; ++i) {
    step.token.copy_(at::randn({2, 3, 8}));
    const auto expected = step.expected();
    graph.replay();
    CHECK(close(step.out, expected));
  }
  CHECK(Machine::get().launches == launches + 3);
  CHECK(findings().empty());
}

TEST_CASE("a step that fails while it is recorded leaves things as they were") {
  Step step;
  const auto state = step.state.clone();
  std::string reason, because;
  SECTION("it waits for the device") {
    because = "CUDA error: operation not permitted when stream is capturing";
    reason = record_step(kDevice, [&] {
               step();
               static_cast<void>(step.out.sum().item<float>());
             }).unsupported_reason;
  }
  SECTION("it throws") {
    because = "no such token";
    reason = record_step(kDevice, [&] {
               throw std::runtime_error("no such token\nat a line");
             }).unsupported_reason;
  }
  SECTION("a launch fails") {
    because = "CUDA error: out of memory";
    Machine::get().fail(Call::kLaunch, cudaErrorMemoryAllocation, 0);
    reason = record_step(kDevice, [&] { step(); }).unsupported_reason;
  }
  SECTION("the capture does not begin") {
    because = "CUDA error: out of memory";
    Machine::get().fail(Call::kCaptureBegin, cudaErrorMemoryAllocation, 0);
    reason = record_step(kDevice, [&] { step(); }).unsupported_reason;
  }
  SECTION("the capture does not end") {
    because = "CUDA error: operation failed due to a previous error during capture";
    Machine::get().fail(Call::kCaptureEnd, cudaErrorStreamCaptureInvalidated, 0);
    reason = record_step(kDevice, [&] { step(); }).unsupported_reason;
  }
  SECTION("there is no device any more") {
    because = "CUDA error: no CUDA-capable device is detected";
    Machine::get().fail(Call::kSetDevice, cudaErrorNoDevice, 0);
    reason = record_step(kDevice, [&] { step(); }).unsupported_reason;
  }
  CHECK(reason == "recording it failed: " + because);
  CHECK(at::equal(step.state, state));

  // The next call works, recorded too.
  const auto expected = step.expected();
  step();
  CHECK(close(step.out, expected));
  const auto graph = record_step(kDevice, [&] { step(); });
  CHECK(graph.unsupported_reason.empty());
  const auto again = step.expected();
  graph.replay();
  CHECK(close(step.out, again));
  CHECK(findings().empty());
}

TEST_CASE("a step inside another capture is refused") {
  Step step;
  std::string reason;
  const auto outer = record_step(
      kDevice, [&] { reason = record_step(kDevice, [&] { step(); }).unsupported_reason; });
  CHECK(outer.unsupported_reason.empty());
  CHECK(reason == "another graph is being recorded");
}

TEST_CASE("a replay that fails says so, and the next one works") {
  Step step;
  const auto graph = record_step(kDevice, [&] { step(); });
  const auto state = step.state.clone();
  Machine::get().fail(Call::kReplay, cudaErrorLaunchFailure, 0);
  CHECK_THROWS_WITH(graph.replay(), ContainsSubstring("CUDA error: unspecified launch failure"));
  CHECK(at::equal(step.state, state));
  const auto expected = step.expected();
  graph.replay();
  CHECK(close(step.out, expected));
}
