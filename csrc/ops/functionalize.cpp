// SPDX-License-Identifier: Apache-2.0
//
// What torch.compile, torch.export and AOTInductor see of the operators that write into an argument.
//
// Each such operator has a private functional form, _NAME_functional, which leaves its arguments
// alone and returns the written tensor after the result. Functionalization takes that form and then
// gives the argument its new value, as it does for the operators of ATen. Without these kernels,
// torch wraps the operator in `auto_functionalized_v2`, and Inductor may drop the copies around it:
// with torch 2.11, a copy of the state taken between two steps then holds the later state.
#include <ATen/FunctionalTensorWrapper.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/clone.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <vector>

namespace retnet::ops {
namespace {

namespace functionalization = at::functionalization::impl;

/// The index of the argument that an operator writes into.
size_t written_argument(const c10::OperatorHandle& op) {
  const auto& arguments = op.schema().arguments();
  const auto found = std::find_if(arguments.begin(), arguments.end(), [](const auto& argument) {
    return argument.alias_info() && argument.alias_info()->isWrite();
  });
  TORCH_INTERNAL_ASSERT(found != arguments.end(), op.schema());
  return found - arguments.begin();
}

/// retnet::NAME to retnet::_NAME_functional.
c10::OperatorHandle functional_form(const c10::OperatorHandle& op) {
  const auto name = op.schema().name().substr(std::string("retnet::").size());
  return c10::Dispatcher::singleton().findSchemaOrThrow(
      ("retnet::_" + name + "_functional").c_str(), "");
}

/// retnet::_NAME_functional to retnet::NAME.
c10::OperatorHandle in_place_form(const c10::OperatorHandle& op) {
  const auto name = op.schema().name().substr(std::string("retnet::_").size());
  return c10::Dispatcher::singleton().findSchemaOrThrow(
      ("retnet::" + name.substr(0, name.rfind("_functional"))).c_str(), "");
}

/// NAME under functionalization: runs the functional form on the tensors inside the wrappers.
void functionalize(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto index = written_argument(op);
  auto arguments = torch::jit::pop(*stack, op.schema().arguments().size());
  const auto written = arguments[index].toTensor();
  bool any = false;
  for (auto& argument : arguments) {
    if (!argument.isTensor()) continue;
    const auto tensor = argument.toTensor();
    if (!functionalization::isFunctionalTensor(tensor)) continue;
    functionalization::sync(tensor);
    argument = functionalization::from_functional_tensor(tensor);
    any = true;
  }
  const bool is_functional = functionalization::isFunctionalTensor(written);
  TORCH_CHECK(is_functional || !any, op.schema().name(), ": ",
              op.schema().arguments()[index].name(),
              " must be traced like the other arguments, got a tensor that is not");
  stack->insert(stack->end(), arguments.begin(), arguments.end());
  const at::AutoDispatchSkipFunctionalize guard;
  if (!is_functional) {
    op.callBoxed(stack);
    return;
  }
  functional_form(op).callBoxed(stack);
  const auto after = torch::jit::pop(*stack).toTensor();
  const auto result = torch::jit::pop(*stack).toTensor();
  functionalization::replace_(written, after);
  functionalization::commit_update(written);
  functionalization::sync(written);
  torch::jit::push(*stack, functionalization::to_functional_tensor(result));
}

/// _NAME_functional: runs NAME on a copy of the argument, which becomes the second result.
void run_on_copy(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto in_place = in_place_form(op);
  auto& argument =
      torch::jit::peek(*stack, written_argument(in_place), in_place.schema().arguments().size());
  const auto after = argument.toTensor().clone(at::MemoryFormat::Contiguous);
  argument = after;
  in_place.callBoxed(stack);
  torch::jit::push(*stack, after);
}

/// _NAME_functional under autograd: like NAME, it has no gradient.
void refuse_gradient(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto count = op.schema().arguments().size();
  for (size_t i = 0; i < count && at::GradMode::is_enabled(); ++i) {
    const auto& argument = torch::jit::peek(*stack, i, count);
    TORCH_CHECK(!argument.isTensor() || !argument.toTensor().requires_grad(), op.schema().name(),
                ": ", op.schema().arguments()[i].name(),
                " must not require grad while grad mode is on, got requires_grad=True");
  }
  const at::AutoDispatchBelowAutograd guard;
  op.callBoxed(stack);
}

constexpr auto boxed_functionalize = torch::CppFunction::makeFromBoxedFunction<&functionalize>;
constexpr auto boxed_run_on_copy = torch::CppFunction::makeFromBoxedFunction<&run_on_copy>;
constexpr auto boxed_refuse_gradient = torch::CppFunction::makeFromBoxedFunction<&refuse_gradient>;

}  // namespace

TORCH_LIBRARY_FRAGMENT(retnet, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def(
      "_retention_step_functional(Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor state, *, "
      "float? scale=None, Tensor? slots=None) -> (Tensor out, Tensor state_after)",
      tags);
  m.def(
      "_multi_scale_retention_step_functional(Tensor q, Tensor k, Tensor v, Tensor gate, "
      "Tensor log_decay, Tensor state, Tensor positions, Tensor frequencies, *, "
      "Tensor? weight=None, Tensor? bias=None, float eps, str norm=\"layer\", "
      "str style=\"interleaved\", float? scale=None, Tensor? slots=None) "
      "-> (Tensor out, Tensor state_after)",
      tags);
  m.def(
      "_cross_entropy_with_gradient__functional(Tensor logits, Tensor targets, *, "
      "int ignore_index=-100) -> (Tensor loss, Tensor gradient)",
      tags);
}

TORCH_LIBRARY_IMPL(retnet, Functionalize, m) {
  for (const auto* name :
       {"retention_step", "multi_scale_retention_step", "cross_entropy_with_gradient_"}) {
    m.impl(name, boxed_functionalize());
  }
}

TORCH_LIBRARY_IMPL(retnet, CompositeExplicitAutograd, m) {
  for (const auto* name : {"_retention_step_functional", "_multi_scale_retention_step_functional",
                           "_cross_entropy_with_gradient__functional"}) {
    m.impl(name, boxed_run_on_copy());
  }
}

TORCH_LIBRARY_IMPL(retnet, Autograd, m) {
  for (const auto* name : {"_retention_step_functional", "_multi_scale_retention_step_functional",
                           "_cross_entropy_with_gradient__functional"}) {
    m.impl(name, boxed_refuse_gradient());
  }
}

}  // namespace retnet::ops
