// SPDX-License-Identifier: Apache-2.0
//
// retnet_exchange FOLDER...: reads a checkpoint, a decoding state and tokens that Python wrote to
// each folder. It writes its results, its own checkpoint and its own state to FOLDER/cpp.
// test_cpp_io.py compares them.
#include <retnet/io/checkpoint.h>
#include <retnet/io/safetensors.h>
#include <retnet/io/state.h>
#include <retnet/nn/generate.h>

int main(int argc, char** argv) {
  const torch::NoGradGuard no_grad;
  for (int i = 1; i < argc; ++i) {
    const std::filesystem::path folder = argv[i];
    auto model = retnet::nn::load(folder);
    const auto state = retnet::nn::load_state(folder / "state");
    const retnet::io::SafetensorsFile file(folder / "ids");
    const auto ids = file.read(*file.find("ids"));
    const auto greedy = retnet::nn::GenerateOptions(12).temperature(0);
    const auto output = model(ids, state);

    retnet::nn::save(folder / "cpp", model);
    retnet::nn::save(folder / "cpp/state", output.state);
    retnet::io::write_safetensors(
        folder / "cpp/results",
        {{"logits", output.logits},
         {"text", torch::stack(retnet::nn::generate(model, ids.unbind(0), greedy))}});
  }
}
