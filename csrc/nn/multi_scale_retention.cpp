// SPDX-License-Identifier: Apache-2.0
#include "nn/multi_scale_retention.h"

#include <torch/nn/init.h>

#include <cmath>

#include "nn/retention_constants.h"
#include "nn/skip_init.h"
#include "ops/multi_scale_retention_step.h"
#include "ops/retention.h"
#include "ops/rotary.h"

namespace retnet::nn {

namespace {

/// n_t^(-1/2), n_t = sum_{i<=t} gamma^i = (1 - gamma^(t+1)) / (1 - gamma), in float64.
/// If gamma = 1, n_t = t + 1, and a learnable decay gets no gradient from this factor.
/// [T] -> [T, H, 1], [B, T] -> [B, T, H, 1].
torch::Tensor inverse_sqrt_weight_sum(const torch::Tensor& log_decay,
                                      const torch::Tensor& positions) {
  const auto g = log_decay.to(torch::kFloat64);
  const auto count = positions.to(torch::kFloat64).unsqueeze(-1) + 1;
  const auto below_one = torch::where(g == 0, -1.0, g);
  const auto total = torch::expm1(count * below_one) / torch::expm1(below_one);
  return torch::where(g == 0, count, total).rsqrt().unsqueeze(-1);
}

}  // namespace

bool is_step(int64_t length, bool has_state, const std::optional<torch::Tensor>& cu_seqlens) {
  return length == 1 && has_state && !cu_seqlens && !torch::GradMode::is_enabled();
}

MultiScaleRetentionImpl::MultiScaleRetentionImpl(const RetNetOptions& options,
                                                 const torch::TensorOptions& tensor_options)
    : options(options.validated()),
      tensor_options_(tensor_options),
      constants_(std::make_shared<RetentionConstants>(options)) {
  reset();
}

void MultiScaleRetentionImpl::reset() {
  const auto d = options.embed_dim();
  const auto keys = options.num_heads() * options.key_dim();
  const auto values = options.num_heads() * options.value_dim();
  q_proj = register_module("q_proj", Linear(d, keys, options.bias(), tensor_options_));
  k_proj = register_module("k_proj", Linear(d, keys, options.bias(), tensor_options_));
  v_proj = register_module("v_proj", Linear(d, values, options.bias(), tensor_options_));
  g_proj = register_module("g_proj", Linear(d, values, options.bias(), tensor_options_));
  out_proj = register_module("out_proj", Linear(values, d, options.bias(), tensor_options_));
  group_norm = register_module("group_norm", GatedGroupNorm(options, tensor_options_));
  if (options.learnable_decay()) {
    log_decay_raw = register_parameter(
        "log_decay_raw",
        torch::empty({options.num_heads()}, tensor_options_.dtype(torch::kFloat32)));
  }
  reset_parameters();
}

void MultiScaleRetentionImpl::reset_parameters() {
  if (SkipInit::active()) return;
  for (auto& proj : {q_proj, k_proj, v_proj, g_proj}) {
    torch::nn::init::xavier_uniform_(proj->weight, std::exp2(-2.5));
    if (proj->bias.defined()) {
      const auto bound = 1 / std::sqrt(static_cast<double>(options.embed_dim()));
      torch::nn::init::uniform_(proj->bias, -bound, bound);
    }
  }
  torch::nn::init::xavier_uniform_(out_proj->weight, 0.5);
  if (out_proj->bias.defined()) torch::nn::init::zeros_(out_proj->bias);
  group_norm->reset_parameters();
  if (log_decay_raw.defined()) {
    const auto constants = constants_->on(torch::kCPU);
    const torch::NoGradGuard no_grad;
    log_decay_raw.copy_(raw_of(constants.log_decay, constants.reference));
  }
}

void MultiScaleRetentionImpl::to(torch::Device device, torch::Dtype dtype, bool non_blocking) {
  to(dtype, non_blocking);
  to(device, non_blocking);
}

void MultiScaleRetentionImpl::to(torch::Dtype dtype, bool non_blocking) {
  const auto raw = log_decay_raw.defined() ? log_decay_raw.data() : torch::Tensor();
  Module::to(dtype, non_blocking);
  if (raw.defined()) log_decay_raw.set_data(raw);
}

void MultiScaleRetentionImpl::pretty_print(std::ostream& stream) const {
  stream << std::boolalpha << "retnet::nn::MultiScaleRetention(embed_dim=" << options.embed_dim()
         << ", num_heads=" << options.num_heads() << ", key_dim=" << options.key_dim()
         << ", value_dim=" << options.value_dim() << ", decay_norm=" << options.decay_norm()
         << ", learnable_decay=" << options.learnable_decay() << ")";
}

torch::Tensor MultiScaleRetentionImpl::log_decay() const {
  const auto& parameter = log_decay_raw.defined() ? log_decay_raw : q_proj->weight;
  const auto constants = constants_->on(parameter.device());
  if (!log_decay_raw.defined()) return constants.log_decay;
  return log_decay_of(log_decay_raw, constants.reference);
}

std::tuple<torch::Tensor, torch::Tensor> MultiScaleRetentionImpl::forward(
    const torch::Tensor& x, const std::optional<torch::Tensor>& state,
    const std::optional<torch::Tensor>& positions, const std::optional<torch::Tensor>& cu_seqlens,
    std::string_view form, bool inplace) {
  TORCH_CHECK_VALUE(positions || (!state && !cu_seqlens),
                    "MultiScaleRetention: positions must be given with state or cu_seqlens, got "
                    "None");
  const auto place = positions
                         ? *positions
                         : torch::arange(x.size(1), torch::dtype(torch::kInt64).device(x.device()));
  const auto H = options.num_heads();
  auto q = q_proj(x).unflatten(-1, {H, options.key_dim()});
  auto k = k_proj(x).unflatten(-1, {H, options.key_dim()});
  const auto v = v_proj(x).unflatten(-1, {H, options.value_dim()});
  const auto gate = g_proj(x).unflatten(-1, {H, options.value_dim()});

  const auto frequencies = constants_->on(x.device()).frequencies;
  const auto decay = log_decay();
  const auto op_decay = q.scalar_type() == torch::kFloat64 ? decay.to(torch::kFloat64) : decay;
  if (options.decay_norm()) q = q * inverse_sqrt_weight_sum(decay, place).to(q.scalar_type());

  if (is_step(x.size(1), state.has_value(), cu_seqlens)) {
    const auto after = inplace ? *state : state->clone();
    const auto out = ops::multi_scale_retention_step(
        q.squeeze(1), k.squeeze(1), v.squeeze(1), gate.squeeze(1), op_decay, after,
        place.reshape(-1).expand(x.size(0)), frequencies, group_norm->weight, group_norm->bias,
        options.group_norm_eps(), options.group_norm(), options.rotary_style());
    return {out_proj(out.flatten(-2)).unsqueeze(1), after};
  }

  std::tie(q, k) = ops::rotary(q, k, place, frequencies, options.rotary_style());
  const auto [out, after] =
      ops::retention(q, k, v, op_decay, state, std::nullopt, form, std::nullopt, cu_seqlens);
  return {out_proj(group_norm(out, gate).flatten(-2)), after};
}

}  // namespace retnet::nn
