// SPDX-License-Identifier: Apache-2.0
//
// Runs the C++ modules on models that Python wrote: retnet_parity IN OUT, both as torch.save and
// torch.load read them. test_cpp_parity.py compares the results with the Python modules.
#include <retnet/nn/generate.h>
#include <torch/serialize.h>

#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

using c10::IValue;
using retnet::nn::NameOrList;
using retnet::nn::RetNetForCausalLM;
using retnet::nn::RetNetOptions;
using Dict = c10::impl::GenericDict;

Dict make_dict() { return Dict(c10::StringType::get(), c10::AnyType::get()); }

IValue at(const IValue& dict, const char* key) { return dict.toGenericDict().at(key); }

torch::Tensor tensor(const IValue& dict, const char* key) { return at(dict, key).toTensor(); }

NameOrList name_or_list(const IValue& value) {
  if (value.isString()) return value.toStringRef();
  std::vector<double> list;
  for (const auto& item : value.toTupleRef().elements()) list.push_back(item.toDouble());
  return list;
}

// dataclasses.asdict of a RetNetConfig.
RetNetOptions options_of(const IValue& config) {
  const auto size = [&](const char* key) { return at(config, key).toInt(); };
  const auto number = [&](const char* key) { return at(config, key).toDouble(); };
  const auto flag = [&](const char* key) { return at(config, key).toBool(); };
  const auto name = [&](const char* key) { return at(config, key).toStringRef(); };
  return RetNetOptions()
      .vocab_size(size("vocab_size"))
      .embed_dim(size("embed_dim"))
      .num_layers(size("num_layers"))
      .num_heads(size("num_heads"))
      .key_dim(size("key_dim"))
      .value_dim(size("value_dim"))
      .ffn_dim(size("ffn_dim"))
      .decay(name_or_list(at(config, "decay")))
      .learnable_decay(flag("learnable_decay"))
      .rotary_style(name("rotary_style"))
      .frequencies(name_or_list(at(config, "frequencies")))
      .decay_norm(flag("decay_norm"))
      .group_norm(name("group_norm"))
      .group_norm_eps(number("group_norm_eps"))
      .group_norm_affine(flag("group_norm_affine"))
      .norm(name("norm"))
      .norm_eps(number("norm_eps"))
      .pre_norm(flag("pre_norm"))
      .ffn_gated(flag("ffn_gated"))
      .activation(name("activation"))
      .residual_scale(number("residual_scale"))
      .embed_scale(number("embed_scale"))
      .tie_embeddings(flag("tie_embeddings"));
}

Dict named_tensors(const torch::OrderedDict<std::string, torch::Tensor>& tensors, bool grads) {
  auto dict = make_dict();
  for (const auto& item : tensors) {
    dict.insert(item.key(), grads ? item.value().grad() : item.value().detach().clone());
  }
  return dict;
}

// One case in, the results that test_cpp_parity.py names out.
Dict run(const IValue& example) {
  const auto options = options_of(at(example, "config"));
  auto result = make_dict();

  torch::manual_seed(3);
  RetNetForCausalLM model(options);
  result.insert("initial", named_tensors(model->named_parameters(), false));
  model->reset_parameters();
  result.insert("reset", named_tensors(model->named_parameters(), false));

  model->to(tensor(at(example, "weights"), "embed_tokens.weight").scalar_type());
  auto parameters = model->named_parameters();
  {
    const torch::NoGradGuard no_grad;
    for (const auto& item : at(example, "weights").toGenericDict()) {
      parameters[item.key().toStringRef()].copy_(item.value().toTensor());
    }
  }

  const auto ids = tensor(example, "ids"), bounds = tensor(example, "bounds");
  const auto output = model(ids, std::nullopt, std::nullopt, ids);
  output.loss->backward();
  result.insert("logits", output.logits.detach());
  result.insert("loss", output.loss->detach());
  result.insert("retention", output.state.retention.detach());
  result.insert("positions", output.state.positions);
  result.insert("grads", named_tensors(parameters, true));

  const torch::NoGradGuard no_grad;
  const auto packed = model(ids.reshape({1, -1}), std::nullopt, bounds, ids.reshape({1, -1}));
  result.insert("packed_logits", packed.logits);
  result.insert("packed_loss", *packed.loss);
  result.insert("packed_positions", packed.state.positions);
  const auto step = model(ids.slice(1, 0, 1), output.state.detach());
  result.insert("step_logits", step.logits);
  result.insert("step_retention", step.state.retention);

  for (const auto& [key, temperature] : {std::pair("greedy", 0.0), std::pair("drawn", 2.0)}) {
    const auto how =
        retnet::nn::GenerateOptions(12).temperature(temperature).top_k(5).seed(uint64_t{7});
    result.insert(key, torch::stack(retnet::nn::generate(model, ids.unbind(0), how)));
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  std::ifstream in(argv[1], std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
  auto results = make_dict();
  for (const auto& item : torch::pickle_load(bytes).toGenericDict()) {
    results.insert(item.key().toStringRef(), run(item.value()));
  }
  const auto saved = torch::pickle_save(results);
  std::ofstream(argv[2], std::ios::binary).write(saved.data(), std::ssize(saved));
}
