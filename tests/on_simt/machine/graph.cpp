// SPDX-License-Identifier: Apache-2.0
#include "machine/graph.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/cuda/CUDAException.h>

#include <algorithm>
#include <cstring>
#include <string_view>
#include <vector>

namespace retnet::on_simt {
namespace {

constexpr auto kMode = c10::DispatchKey::TESTING_ONLY_GenericMode;

bool starts_with(std::string_view text, std::string_view start) {
  return text.substr(0, start.size()) == start;
}

// Returns whether the operator waits for the device on a GPU.
bool waits(std::string_view name) {
  constexpr std::string_view kWaiting[] = {"aten::_local_scalar_dense", "aten::item",
                                           "aten::is_nonzero", "aten::equal", "aten::nonzero"};
  return std::find(std::begin(kWaiting), std::end(kWaiting), name) != std::end(kWaiting);
}

// The tensors among some values, lists of tensors included.
std::vector<at::Tensor> tensors_of(const std::vector<c10::IValue>& values) {
  std::vector<at::Tensor> all;
  for (const c10::IValue& value : values) {
    if (value.isTensor() && value.toTensor().defined()) all.push_back(value.toTensor());
    if (!value.isTensorList()) continue;
    for (const at::Tensor& tensor : value.toTensorVector()) all.push_back(tensor);
  }
  return all;
}

bool shares_memory(const at::Tensor& tensor, const std::vector<at::Tensor>& others) {
  return std::any_of(others.begin(), others.end(), [&](const at::Tensor& other) {
    return other.has_storage() && tensor.has_storage() &&
           other.storage().is_alias_of(tensor.storage());
  });
}

// Calls the operator again and copies its results to where they were when it was recorded.
void call_again(const c10::OperatorHandle& op, const std::vector<c10::IValue>& arguments,
                const std::vector<at::Tensor>& recorded) {
  const at::NoGradGuard no_grad;
  std::vector<c10::IValue> stack = arguments;
  op.callBoxed(&stack);
  const auto results = tensors_of(stack);
  TORCH_INTERNAL_ASSERT(results.size() == recorded.size());
  for (size_t i = 0; i < results.size(); ++i) {
    if (!shares_memory(results[i], tensors_of(arguments))) recorded[i].copy_(results[i]);
  }
}

void record_operator(const c10::OperatorHandle& op, c10::DispatchKeySet keys,
                     std::vector<c10::IValue>* stack) {
  const auto name = op.operator_name();
  if (starts_with(name.name, "retnet::")) {  // what it calls is recorded
    op.redispatchBoxed(keys & c10::DispatchKeySet(c10::DispatchKeySet::FULL_AFTER, kMode), stack);
    return;
  }
  const auto graph = Machine::get().current(kTensorDevice).graph;
  if (graph == nullptr) {
    Machine::get().find("a capture goes on, and its stream is not current");
    const c10::impl::ExcludeDispatchKeyGuard apart(kMode);
    op.callBoxed(stack);
    return;
  }
  if (waits(name.name)) {
    graph->invalidated = true;
    c10::cuda::check(cudaErrorStreamCaptureUnsupported);
  }
  const c10::impl::ExcludeDispatchKeyGuard apart(kMode);
  const size_t count = op.schema().arguments().size();
  const std::vector<c10::IValue> arguments(stack->end() - static_cast<ptrdiff_t>(count),
                                           stack->end());
  op.callBoxed(stack);
  const size_t returns = op.schema().returns().size();
  const auto results = tensors_of({stack->end() - static_cast<ptrdiff_t>(returns), stack->end()});
  if (starts_with(name.name, "aten::empty")) return;
  graph->add([op, arguments, results] { call_again(op, arguments, results); });
}

// A copy of the parameters of a kernel, which the launch reads again.
struct RecordedLaunch {
  simt::LaunchShape shape;
  void (*trampoline)(const void*);
  std::vector<std::max_align_t> arguments;
  size_t argument_bytes;
};

}  // namespace

void Graph::add_launch(const simt::LaunchShape& shape, void (*trampoline)(const void*),
                       const void* arguments, size_t argument_bytes) {
  RecordedLaunch launch{shape, trampoline, {}, argument_bytes};
  launch.arguments.resize(argument_bytes / sizeof(std::max_align_t) + 1);
  std::memcpy(launch.arguments.data(), arguments, argument_bytes);
  add([launch] {
    Machine::get().run(launch.shape, launch.trampoline, launch.arguments.data(),
                       launch.argument_bytes);
  });
}

void Graph::replay() const {
  for (const auto& node : nodes_) node();
}

void record_operators(bool enabled) {
  static auto& registration =
      *new c10::RegistrationHandleRAII(c10::Dispatcher::singleton().registerFallback(
          kMode, c10::KernelFunction::makeFromBoxedFunction<&record_operator>(), "on_simt"));
  static_cast<void>(registration);
  c10::impl::tls_set_dispatch_key_included(kMode, enabled);
}

}  // namespace retnet::on_simt

namespace at::cuda {

using retnet::on_simt::Call;
using retnet::on_simt::Graph;
using retnet::on_simt::kTensorDevice;
using retnet::on_simt::Machine;

CUDAGraph::CUDAGraph() : graph_(std::make_shared<Graph>()) {}
CUDAGraph::~CUDAGraph() = default;

void CUDAGraph::capture_begin(MempoolId_t, cudaStreamCaptureMode) {
  auto& stream = Machine::get().current(kTensorDevice);
  TORCH_CHECK(stream.id != 0, "CUDA graphs must be captured on a non-default stream");
  c10::cuda::check(Machine::get().injected(Call::kCaptureBegin));
  stream.graph = graph_;
  retnet::on_simt::record_operators(true);
}

void CUDAGraph::capture_end() {
  auto& stream = Machine::get().current(kTensorDevice);
  TORCH_CHECK(stream.graph == graph_, "a graph ends on another stream than it began");
  stream.graph = nullptr;
  retnet::on_simt::record_operators(false);
  c10::cuda::check(Machine::get().injected(Call::kCaptureEnd));
  if (graph_->invalidated) c10::cuda::check(cudaErrorStreamCaptureInvalidated);
}

void CUDAGraph::replay() {
  c10::cuda::check(Machine::get().injected(Call::kReplay));
  graph_->replay();
}

}  // namespace at::cuda
