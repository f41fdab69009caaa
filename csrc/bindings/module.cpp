// SPDX-License-Identifier: Apache-2.0
//
// Binds the C++ modules for Python. `retnet/cpp.py` makes torch modules of them. The ops need no
// binding, because torch has them (torch.ops.retnet). Only `has_faster_linear` is bound, which
// `retnet/nn/linear.py` asks before it calls the op.
#include <retnet/nn/causal_lm.h>
#include <retnet/nn/decoder_layer.h>
#include <retnet/nn/feed_forward.h>
#include <retnet/nn/generate.h>
#include <retnet/nn/layer_norm.h>
#include <retnet/nn/multi_scale_retention.h>
#include <retnet/nn/option_fields.h>
#include <retnet/nn/retnet.h>
#include <retnet/ops/linear.h>
#include <retnet/version.h>
#include <torch/csrc/Exceptions.h>
#include <torch/extension.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace retnet {
namespace {

/// Reads the fields of a RetNetConfig. The configuration must have all fields and no others.
nn::RetNetOptions options_of(const py::dict& config) {
  nn::RetNetOptions options;
  size_t taken = 0;
  nn::for_each_field(options, [&]<class T>(const char* name, T& field) {
    field = config[name].cast<T>();
    ++taken;
  });
  TORCH_CHECK(taken == config.size(), "retnet._C: the configuration must have ", taken,
              " fields, got ", config.size());
  return options;
}

using Tensor = at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using StateTensors = std::pair<Tensor, Tensor>;  // retention and positions of a RetNetState

std::optional<nn::RetNetState> state_of(const std::optional<StateTensors>& tensors) {
  if (!tensors) return std::nullopt;
  return nn::RetNetState{tensors->first, tensors->second};
}

StateTensors tensors_of(const nn::RetNetState& state) { return {state.retention, state.positions}; }

/// Binds what all modules share.
template <class Module>
py::class_<Module, std::shared_ptr<Module>> bind(py::module_& m, const char* name) {
  py::class_<Module, std::shared_ptr<Module>> c(m, name);
  c.def(py::init([](const py::dict& config, at::Device device, at::ScalarType dtype) {
    return std::make_shared<Module>(options_of(config),
                                    at::TensorOptions().device(device).dtype(dtype));
  }));
  c.def("named_parameters", [](Module& self) {
    std::vector<std::pair<std::string, Tensor>> parameters;
    for (const auto& item : self.named_parameters())
      parameters.emplace_back(item.key(), item.value());
    return parameters;
  });
  c.def("reset_parameters", &Module::reset_parameters);
  c.def("train", [](Module& self, bool on) { self.train(on); });
  return c;
}

/// Wraps f so that torch translates its exceptions and it runs without the lock of Python.
template <class F>
auto released(F&& f) {
  return torch::wrap_pybind_function_no_gil(std::forward<F>(f));
}

template <class Module>
void bind_row_wise(py::module_& m, const char* name) {
  bind<Module>(m, name).def(
      "forward", released([](Module& self, const Tensor& x) { return self.forward(x); }));
}

template <class Module>
void bind_layer(py::module_& m, const char* name) {
  bind<Module>(m, name).def("forward",
                            released([](Module& self, const Tensor& x, const MaybeTensor& state,
                                        const MaybeTensor& positions, const MaybeTensor& cu_seqlens,
                                        const std::string& form, bool inplace) {
                              return self.forward(x, state, positions, cu_seqlens, form, inplace);
                            }));
}

}  // namespace
}  // namespace retnet

PYBIND11_MODULE(_C, m) {
  using namespace retnet;
  m.doc() = "Native part of retnet. Importing it registers the operators torch.ops.retnet.*";
  m.attr("__version__") = version();
  m.attr("linear_few_rows") = ops::linear_few_rows();
  m.def("has_faster_linear", torch::wrap_pybind_function([](const Tensor& x, const Tensor& weight) {
          return ops::has_faster_linear(x, weight, at::GradMode::is_enabled());
        }));

  bind_row_wise<nn::LayerNormImpl>(m, "LayerNorm");
  bind_row_wise<nn::FeedForwardImpl>(m, "FeedForward");
  bind_layer<nn::MultiScaleRetentionImpl>(m, "MultiScaleRetention");
  bind_layer<nn::DecoderLayerImpl>(m, "DecoderLayer");
  bind<nn::RetNetImpl>(m, "RetNet")
      .def("forward",
           released([](nn::RetNetImpl& self, const Tensor& input_ids,
                       const std::optional<StateTensors>& state, const MaybeTensor& cu_seqlens,
                       const std::string& form, bool inplace) {
             const auto [hidden, after] =
                 self.forward(input_ids, state_of(state), cu_seqlens, form, inplace);
             return std::pair(hidden, tensors_of(after));
           }))
      .def_readwrite("checkpoint_layers", &nn::RetNetImpl::checkpoint_layers);
  bind<nn::RetNetForCausalLMImpl>(m, "RetNetForCausalLM")
      .def("forward",
           released([](nn::RetNetForCausalLMImpl& self, const Tensor& input_ids,
                       const std::optional<StateTensors>& state, const MaybeTensor& cu_seqlens,
                       const MaybeTensor& labels, const std::string& form, bool inplace,
                       bool last_only, const MaybeTensor& targets, const std::string& reduction) {
             const auto out = self.forward(input_ids, state_of(state), cu_seqlens, labels, form,
                                           inplace, last_only, targets, reduction);
             return std::tuple(out.logits, out.loss, tensors_of(out.state));
           }))
      .def_property(
          "checkpoint_layers",
          [](const nn::RetNetForCausalLMImpl& self) { return self.body->checkpoint_layers; },
          [](nn::RetNetForCausalLMImpl& self, bool on) { self.body->checkpoint_layers = on; })
      .def(
          "generate",
          released([](const std::shared_ptr<nn::RetNetForCausalLMImpl>& self,
                      const std::vector<Tensor>& prompts, int64_t max_new_tokens,
                      double temperature, std::optional<int64_t> top_k, std::optional<double> top_p,
                      const std::vector<int64_t>& stop_tokens, std::optional<uint64_t> seed) {
            const auto options = nn::GenerateOptions(max_new_tokens)
                                     .temperature(temperature)
                                     .top_k(top_k)
                                     .top_p(top_p)
                                     .stop_tokens(stop_tokens)
                                     .seed(seed);
            return nn::generate(nn::RetNetForCausalLM(self), prompts, options);
          }));
}
