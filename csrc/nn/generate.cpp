// SPDX-License-Identifier: Apache-2.0
#include "nn/generate.h"

#include <ATen/Context.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include "nn/decode_step.h"

namespace retnet::nn {

namespace {

constexpr size_t kUncheckedSteps = 64;  // a check of the logits follows after this many steps

void check(const std::vector<torch::Tensor>& prompts, const GenerateOptions& options) {
  TORCH_CHECK_VALUE(!prompts.empty(), "generate: prompts must hold at least one prompt, got none");
  for (const auto& prompt : prompts) {
    TORCH_CHECK_VALUE(prompt.dim() == 1 && prompt.size(0) > 0,
                      "generate: prompts must have shape [T], T >= 1, got ", prompt.sizes());
    TORCH_CHECK_VALUE(
        prompt.scalar_type() == torch::kInt64 || prompt.scalar_type() == torch::kInt32,
        "generate: prompts must be int64 or int32, got ", prompt.scalar_type());
  }
  TORCH_CHECK_VALUE(options.max_new_tokens() >= 0, "generate: max_new_tokens must be >= 0, got ",
                    options.max_new_tokens());
  TORCH_CHECK_VALUE(options.temperature() >= 0, "generate: temperature must be >= 0, got ",
                    options.temperature());
  TORCH_CHECK_VALUE(!options.top_k() || *options.top_k() >= 1,
                    "generate: top_k must be >= 1 or None, got ", *options.top_k());
  TORCH_CHECK_VALUE(!options.top_p() || (*options.top_p() > 0 && *options.top_p() <= 1),
                    "generate: top_p must be in (0, 1] or None, got ", *options.top_p());
}

/// Reads all prompts. Returns the logits of the token after each prompt, and the state.
CausalLMOutput read(RetNetForCausalLM& model, const std::vector<torch::Tensor>& prompts) {
  std::vector<int32_t> bounds = {0};
  bool equal = true;
  for (const auto& prompt : prompts) {
    bounds.push_back(bounds.back() + static_cast<int32_t>(prompt.size(0)));
    equal = equal && prompt.size(0) == prompts[0].size(0);
  }
  torch::Tensor block;
  std::optional<torch::Tensor> cu_seqlens;
  if (equal) {
    block = torch::stack(prompts);
  } else {
    block = torch::cat(prompts).unsqueeze(0);
    cu_seqlens = torch::tensor(bounds, torch::kInt32).to(block.device());
  }
  return model->forward(block, std::nullopt, cu_seqlens, std::nullopt, "chunkwise",
                        /*inplace=*/false, /*last_only=*/true);
}

/// Raises an error if a row had NaN or inf, or only -inf.
///
///   largest  largest logit of each row, [N, 1] per step
void check_finite(const std::vector<torch::Tensor>& largest) {
  if (largest.empty()) return;
  const auto values = torch::cat(largest).flatten();
  const auto bad = values.isfinite().logical_not().nonzero();
  if (bad.size(0) == 0) return;
  const auto first = bad[0].item<int64_t>();
  const auto value = values[first].item<double>();
  TORCH_CHECK_VALUE(false, "generate: logits must be finite, got ",
                    std::isnan(value) ? std::abs(value) : value,  // removes the sign of NaN
                    " for prompt ", first % largest[0].size(0),
                    "; the weights may hold NaN or inf");
}

/// Samples one token per row, [N, 1], from logits [N, vocab] and the largest of each row [N, 1].
torch::Tensor sample(torch::Tensor logits, const torch::Tensor& largest,
                     const GenerateOptions& options,
                     const std::optional<torch::Generator>& generator) {
  constexpr auto kNever = -std::numeric_limits<double>::infinity();
  if (options.temperature() == 0) return logits.argmax(-1, /*keepdim=*/true);
  logits = logits.to(torch::kFloat32);
  // The differences come first, so that a temperature near 0 cannot make two infinities of the
  // logits. The divisor must not be 0 in float32.
  const double least = std::numeric_limits<float>::min();
  const auto differences = logits - largest.to(torch::kFloat32);
  // NaN must not reach multinomial, which on CUDA aborts before the check can raise an error.
  logits =
      torch::where(largest.isfinite(), differences, 0) / std::max(options.temperature(), least);
  if (options.top_k() && *options.top_k() < logits.size(-1)) {
    const auto kth = std::get<0>(logits.topk(*options.top_k())).slice(-1, -1);
    logits = logits.masked_fill(logits < kth, kNever);
  }
  auto probabilities = logits.softmax(-1);
  if (options.top_p()) {
    const auto [sorted, order] = probabilities.sort(-1, /*descending=*/true);
    const auto likelier = sorted.cumsum(-1) - sorted;  // the sum of the probabilities before each
    probabilities = torch::zeros_like(probabilities)
                        .scatter(-1, order, sorted.masked_fill(likelier >= *options.top_p(), 0));
  }
  return torch::multinomial(probabilities, 1, /*replacement=*/false, generator);
}

}  // namespace

std::vector<torch::Tensor> generate(RetNetForCausalLM model,
                                    const std::vector<torch::Tensor>& prompts,
                                    const GenerateOptions& options) {
  check(prompts, options);
  const torch::NoGradGuard no_grad;
  const auto device = prompts[0].device();
  std::optional<torch::Generator> generator;
  if (options.seed()) {
    generator = at::globalContext().defaultGenerator(device).clone();
    generator->set_current_seed(*options.seed());
  }
  const auto stops = torch::tensor(options.stop_tokens(), torch::kInt64).to(device);
  auto ended = torch::zeros({static_cast<int64_t>(prompts.size()), 1},
                            torch::dtype(torch::kBool).device(device));

  // A check waits for the device. It runs at every step only if the loop waits there anyway: on the
  // CPU, or for stop tokens.
  const bool waits = device.is_cpu() || !options.stop_tokens().empty();
  std::vector<torch::Tensor> written, largest;  // `largest` holds the steps since the last check
  std::optional<DecodeStep> step;
  while (static_cast<int64_t>(written.size()) < options.max_new_tokens()) {
    torch::Tensor logits;
    if (step) {
      logits = (*step)(written.back());
    } else {
      const auto output = read(model, prompts);
      logits = output.logits;
      step.emplace(model, output.state);
    }
    logits = logits.reshape({ended.size(0), -1});
    const auto peak = logits.amax(-1, /*keepdim=*/true);
    largest.push_back(peak);
    if (waits || written.size() % kUncheckedSteps == 0) {
      check_finite(largest);
      largest.clear();
    }
    written.push_back(sample(logits, peak, options, generator));
    if (options.stop_tokens().empty()) continue;
    ended = ended.logical_or(torch::isin(written.back(), stops));
    if (ended.all().item<bool>()) break;
  }
  check_finite(largest);

  const auto words = written.empty() ? stops.new_empty({ended.size(0), 0}) : torch::cat(written, 1);
  std::vector<torch::Tensor> texts;
  for (size_t row = 0; row < prompts.size(); ++row) {
    auto text = words[static_cast<int64_t>(row)];
    if (!options.stop_tokens().empty()) {
      const auto hits = torch::isin(text, stops).nonzero();
      if (hits.size(0) > 0) text = text.slice(0, 0, hits[0].item<int64_t>() + 1);
    }
    texts.push_back(torch::cat({prompts[row].to(torch::kInt64), text}));
  }
  return texts;
}

}  // namespace retnet::nn
