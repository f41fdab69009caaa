// SPDX-License-Identifier: Apache-2.0
//
// The machine finds what it is there to find. Each test does one thing wrong.
#include "machine/machine.h"

#include <ATen/TensorOperators.h>
#include <ATen/cuda/CUDAGraph.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <c10/core/Event.h>
#include <c10/cuda/CUDAGuard.h>

#include <optional>
#include <string>
#include <vector>

#include "catch.h"
#include "simt/device.h"

namespace {

using c10::cuda::CUDAGuard;
using c10::cuda::CUDAStreamGuard;
using c10::cuda::getCurrentCUDAStream;
using c10::cuda::getStreamFromPool;
using retnet::on_simt::Machine;
using retnet::simt::LaunchShape;

struct Access {
  char* address;
  bool write;
};

// A kernel whose first thread reads or writes 16 bytes.
void access_kernel(const void* arguments) {
  const auto& access = *static_cast<const Access*>(arguments);
  if (retnet::simt::thread_index().x != 0) return;
  const uint32_t words[4] = {};
  uint32_t read[4];
  if (access.write) {
    retnet::simt::store(access.address, words, sizeof(words));
  } else {
    retnet::simt::load(read, access.address, sizeof(read));
  }
}

cudaError_t launch(cudaStream_t stream, char* address, bool write, LaunchShape shape = {}) {
  const Access access{address, write};
  shape.block = dim3(32);
  shape.stream = stream;
  return Machine::get().launch(shape, access_kernel, &access, sizeof(access));
}

char* address_of(const at::Tensor& tensor) { return static_cast<char*>(tensor.mutable_data_ptr()); }

std::string findings() {
  std::string all;
  for (const std::string& finding : Machine::get().take_findings()) all += finding + "\n";
  return all;
}

const c10::Device kDevice(c10::DeviceType::CPU);

void order(const c10::Stream& before, const c10::Stream& after) {
  c10::Event event(c10::DeviceType::CUDA);
  event.record(before);
  event.block(after);
}

}  // namespace

TEST_CASE("a right launch is found to be right") {
  const CUDAGuard guard(kDevice);
  const auto x = at::empty({8});
  CHECK(launch(getCurrentCUDAStream(), address_of(x), true) == cudaSuccess);
  CHECK(launch(getCurrentCUDAStream(), address_of(x), false) == cudaSuccess);
  CHECK(findings().empty());
}

TEST_CASE("a launch under no guard") {
  const auto x = at::empty({8});
  CHECK_THROWS_WITH(launch(getCurrentCUDAStream(), address_of(x), true),
                    ContainsSubstring("device is not current"));
  CHECK(!findings().empty());
}

TEST_CASE("a launch on the legacy default stream") {
  const CUDAGuard guard(kDevice);
  const auto x = at::empty({8});
  CHECK_THROWS_WITH(launch(nullptr, address_of(x), true),
                    ContainsSubstring("legacy default stream"));
  CHECK(!findings().empty());
}

TEST_CASE("a launch on a stream that is not current, or of another device") {
  const auto elsewhere = getCurrentCUDAStream(0);
  const CUDAGuard guard(kDevice);
  const auto x = at::empty({8});
  CHECK_THROWS_WITH(launch(getStreamFromPool(), address_of(x), true),
                    ContainsSubstring("stream that is not current"));
  CHECK(!findings().empty());
  CHECK(launch(elsewhere, address_of(x), true) == cudaErrorInvalidResourceHandle);
}

TEST_CASE("dynamic shared memory that the kernel has not asked for, or that the device has not") {
  const CUDAGuard guard(kDevice);
  const auto x = at::empty({8});
  LaunchShape shape;
  shape.kernel = reinterpret_cast<const void*>(&access_kernel);
  shape.dynamic_shared = (48 << 10) + 1;
  CHECK(launch(getCurrentCUDAStream(), address_of(x), true, shape) == cudaErrorInvalidValue);
  CHECK(Machine::get().set_dynamic_shared(shape.kernel, 228 << 10) == cudaErrorInvalidValue);
  CHECK(Machine::get().set_dynamic_shared(shape.kernel, 49 << 10) == cudaSuccess);
  CHECK(launch(getCurrentCUDAStream(), address_of(x), true, shape) == cudaSuccess);
}

TEST_CASE("memory past the end of a tensor, and of a tensor that is freed") {
  const CUDAGuard guard(kDevice);
  auto x = at::empty({8});
  char* const start = address_of(x);
  CHECK_THROWS_WITH(launch(getCurrentCUDAStream(), start + 32, true),
                    ContainsSubstring("out of bounds"));
  CHECK_THROWS_WITH(launch(getCurrentCUDAStream(), start + 24, true),
                    ContainsSubstring("misaligned") || ContainsSubstring("out of bounds"));
  x.reset();
  CHECK_THROWS_WITH(launch(getCurrentCUDAStream(), start, false),
                    ContainsSubstring("out of bounds"));
  CHECK(!findings().empty());
}

TEST_CASE("memory that the other stream does not wait for") {
  const CUDAGuard guard(kDevice);
  const auto main = getCurrentCUDAStream();
  const auto x = at::empty({8});
  const auto beside = getStreamFromPool();
  const CUDAStreamGuard stream(beside);
  launch(beside, address_of(x), false);
  CHECK_THAT(findings(), ContainsSubstring("which it does not wait for"));
  order(main, beside);
  launch(beside, address_of(x), false);
  CHECK(findings().empty());
  order(beside, main);
}

TEST_CASE("two streams that write without order") {
  const CUDAGuard guard(kDevice);
  const auto main = getCurrentCUDAStream();
  const auto x = at::empty({8});
  const auto beside = getStreamFromPool();
  order(main, beside);
  {
    const CUDAStreamGuard stream(beside);
    launch(beside, address_of(x), false);
  }
  launch(main, address_of(x), false);
  CHECK(findings().empty());  // both read
  launch(main, address_of(x), true);
  CHECK_THAT(findings(), ContainsSubstring("races with a kernel on stream"));
  order(beside, main);
}

TEST_CASE("memory that is freed while another stream uses it") {
  const bool joined = GENERATE(false, true);
  const CUDAGuard guard(kDevice);
  const auto main = getCurrentCUDAStream();
  auto x = at::empty({8});
  const auto beside = getStreamFromPool();
  order(main, beside);
  {
    const CUDAStreamGuard stream(beside);
    launch(beside, address_of(x), true);
  }
  if (joined) order(beside, main);
  x.reset();
  CHECK(findings().empty() == joined);
}

TEST_CASE("an error that is left for the next call") {
  {
    const CUDAGuard guard(kDevice);
    retnet::simt::set_last_error(cudaErrorInvalidValue);
  }
  const CUDAGuard guard(kDevice);
  CHECK_THAT(findings(), ContainsSubstring("left an error behind: invalid argument"));
}

TEST_CASE("a capture records launches and operators, and its memory lives as long as it does") {
  const CUDAGuard guard(kDevice);
  auto x = at::ones({8});
  std::optional<at::Tensor> y;
  auto graph = std::make_optional<at::cuda::CUDAGraph>();
  CHECK_THROWS_WITH(graph->capture_begin(), ContainsSubstring("non-default stream"));
  const auto main = getCurrentCUDAStream();
  {
    const auto beside = getStreamFromPool();
    order(main, beside);
    const CUDAStreamGuard stream(beside);
    graph->capture_begin();
    y = (x + 1) * 2;  // what holds x + 1 is freed here, and used again by each replay
    launch(beside, address_of(x), true);
    graph->capture_end();
  }
  CHECK(x.sum().item<float>() == 8);  // nothing ran but once, for its shapes
  x.fill_(3);
  graph->replay();
  CHECK(y->sum().item<float>() == 64);
  CHECK(x.sum().item<float>() == 12);  // the kernel's zeros
  graph->replay();
  CHECK(y->sum().item<float>() == 40);
  CHECK(findings().empty());
}

TEST_CASE("a capture that waits for the device is invalidated") {
  const CUDAGuard guard(kDevice);
  const auto x = at::ones({1});
  at::cuda::CUDAGraph graph;
  const CUDAStreamGuard stream(getStreamFromPool());
  graph.capture_begin();
  CHECK_THROWS_WITH(x.item<float>(), ContainsSubstring("not permitted when stream is capturing"));
  CHECK(launch(getCurrentCUDAStream(), address_of(x), true) == cudaErrorStreamCaptureInvalidated);
  CHECK_THROWS_WITH(graph.capture_end(), ContainsSubstring("previous error during capture"));
  CHECK(x.item<float>() == 1);
}
